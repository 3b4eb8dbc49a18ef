//! Tests of the block maps against naive models: what is right is found word by word and sector by sector.

mod chains;
mod maps;
mod model;
mod pages;
