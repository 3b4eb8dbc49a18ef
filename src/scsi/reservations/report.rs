//! PERSISTENT RESERVE IN: the four replies (SPC-5 clause 6.16).

use super::state::{ReservationKind, Reservations};
use crate::scsi::parameter_list::ParameterList;

/// SERVICE ACTION of PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReserveIn {
    /// READ KEYS.
    ReadKeys = 0,
    /// READ RESERVATION.
    ReadReservation = 1,
    /// REPORT CAPABILITIES.
    ReportCapabilities = 2,
    /// READ FULL STATUS.
    ReadFullStatus = 3,
}

impl ReserveIn {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        const ALL: [ReserveIn; 4] =
            [ReserveIn::ReadKeys, ReserveIn::ReadReservation, ReserveIn::ReportCapabilities, ReserveIn::ReadFullStatus];
        ALL.get(usize::from(code)).copied()
    }
}

impl Reservations {
    /// The Data-In of PERSISTENT RESERVE IN, written to `buffer`: its length, or how long the buffer must be. 65,535
    /// bytes are always enough.
    pub fn report(&self, what: ReserveIn, allocation_length: u16, buffer: &mut [u8]) -> Result<usize, usize> {
        let mut out = ParameterList::new(buffer);
        out.begin(u32::from(allocation_length));
        match what {
            ReserveIn::ReadKeys => self.read_keys(&mut out),
            ReserveIn::ReadReservation => self.read_reservation(&mut out),
            ReserveIn::ReportCapabilities => self.report_capabilities(&mut out),
            ReserveIn::ReadFullStatus => self.read_full_status(&mut out),
        }
        out.bytes_missing().map_or(Ok(out.len()), Err)
    }

    /// PRGENERATION, and ADDITIONAL LENGTH to be set.
    fn header(&self, out: &mut ParameterList<'_>) {
        out.push_u32(self.generation);
        out.push_u32(0);
    }

    fn read_keys(&self, out: &mut ParameterList<'_>) {
        self.header(out);
        for registration in &self.registrations {
            out.push_u64(registration.key);
        }
        set_additional_length(out);
    }

    fn read_reservation(&self, out: &mut ParameterList<'_>) {
        self.header(out);
        if let Some(kind) = self.reservation {
            // The key of the one holder; zero where all registrants hold it.
            let holder = self.registrations.iter().find(|registration| registration.holder);
            out.push_u64(holder.map_or(0, |registration| registration.key));
            out.push(&[0, 0, 0, 0, 0, kind as u8, 0, 0]);
        }
        set_additional_length(out);
    }

    fn report_capabilities(&self, out: &mut ParameterList<'_>) {
        const CRH_SIP_C_ATP_C_PTPL_C: u8 = 0x10 | 0x08 | 0x04 | 0x01;
        const TMV: u8 = 0x80;
        let mask = ReservationKind::ALL.iter().fold(0u16, |mask, kind| match *kind as u8 {
            code @ 0..8 => mask | 0x100 << code,
            _ => mask | 1,
        });
        // ALLOW COMMANDS zero: nothing is said about the commands that standards treated differently.
        out.push(&[0, 8, CRH_SIP_C_ATP_C_PTPL_C, TMV | u8::from(self.persist)]);
        out.push_u16(mask);
        out.push_u16(0);
    }

    fn read_full_status(&self, out: &mut ParameterList<'_>) {
        self.header(out);
        for registration in &self.registrations {
            let holder = self.is_holder(registration);
            out.push_u64(registration.key);
            out.push_u32(0);
            // R_HOLDER. ALL_TG_PT is zero: a registration through every port is one for each of them.
            out.push_u8(u8::from(holder));
            out.push_u8(self.reservation.filter(|_| holder).map_or(0, |kind| kind as u8));
            out.push_u32(0);
            out.push_u16(registration.nexus.target_port);
            let initiator = &registration.nexus.initiator;
            out.push_u32(u32::try_from(initiator.transport_id_bytes()).expect("a name is short"));
            initiator.push_transport_id(&mut |part| out.push(part));
        }
        set_additional_length(out);
    }
}

fn set_additional_length(out: &mut ParameterList<'_>) {
    let bytes = u32::try_from(out.total_len() - 8).expect("a bounded number of registrations");
    out.set_u32(4, bytes);
}
