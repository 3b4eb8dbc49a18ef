//! Client commands: talk to the control socket, print tables or JSON.
