//! I_T nexuses as reservations know them, and the TransportID of iSCSI (SPC-5 clause 7.6.4.6).

use crate::scsi::sense::Sense;

/// RFC 7143 section 4.2.7.1.
const NAME_BYTES_MAX: usize = 223;
/// What stands between the name and the ISID in a TransportID.
const SEPARATOR: &[u8] = b",i,0x";
/// FORMAT CODE 01b (an initiator port) and PROTOCOL IDENTIFIER 5 (iSCSI).
const INITIATOR_PORT: u8 = 0x45;
/// Bytes before the name.
const HEADER_BYTES: usize = 4;
/// ADDITIONAL LENGTH is at least this.
const ADDITIONAL_BYTES_MIN: usize = 20;

/// An initiator port: its iSCSI name and the ISID of its session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InitiatorPort {
    /// In lower case, as RFC 3722 has it.
    name: Box<[u8]>,
    isid: [u8; 6],
}

impl InitiatorPort {
    /// `None` for a name that is empty, longer than 223 bytes, or holds a zero or a comma.
    pub fn new(name: &[u8], isid: [u8; 6]) -> Option<Self> {
        let wrong = name.is_empty() || name.len() > NAME_BYTES_MAX || name.iter().any(|byte| matches!(byte, 0 | b','));
        (!wrong).then(|| Self { name: name.to_ascii_lowercase().into(), isid })
    }

    /// The iSCSI name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The ISID.
    pub fn isid(&self) -> [u8; 6] {
        self.isid
    }

    /// This port as TransportID: name, separator and ISID in hexadecimal, ended by zero and padded with zeros.
    pub(super) fn push_transport_id(&self, push: &mut impl FnMut(&[u8])) {
        let additional = self.transport_id_bytes() - HEADER_BYTES;
        let [high, low] = u16::try_from(additional).expect("a name is short").to_be_bytes();
        push(&[INITIATOR_PORT, 0, high, low]);
        push(&self.name);
        push(SEPARATOR);
        for byte in self.isid {
            let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
            push(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
        push(&[0; 24][..additional - self.name.len() - SEPARATOR.len() - 12]);
    }

    /// Bytes of the TransportID.
    pub(super) fn transport_id_bytes(&self) -> usize {
        let text = self.name.len() + SEPARATOR.len() + 12 + 1;
        HEADER_BYTES + text.next_multiple_of(4).max(ADDITIONAL_BYTES_MIN)
    }
}

/// The TransportID at the start of `bytes`, which stand at `offset` of the parameter list, and how many bytes it has.
///
/// Only an initiator port can be a side of an I_T nexus, so that the form without ISID, which names all ports of an
/// initiator, is refused.
pub(super) fn parse_transport_id(bytes: &[u8], offset: usize) -> Result<(InitiatorPort, usize), Sense> {
    let wrong = |byte: usize| Sense::invalid_field_in_list(u16::try_from(offset + byte).unwrap_or(u16::MAX), None);
    let Some(&[format, _, high, low]) = bytes.first_chunk() else {
        return Err(wrong(0));
    };
    if format != INITIATOR_PORT {
        return Err(wrong(0));
    }
    let additional = usize::from(u16::from_be_bytes([high, low]));
    if additional < ADDITIONAL_BYTES_MIN || !additional.is_multiple_of(4) {
        return Err(wrong(2));
    }
    let len = HEADER_BYTES + additional;
    let text = bytes.get(HEADER_BYTES..len).ok_or(wrong(2))?;
    let end = text.iter().position(|byte| *byte == 0).ok_or(wrong(HEADER_BYTES))?;
    let port = parse_port(&text[..end]).ok_or(wrong(HEADER_BYTES))?;
    Ok((port, len))
}

fn parse_port(text: &[u8]) -> Option<InitiatorPort> {
    let comma = text.iter().position(|byte| *byte == b',')?;
    let (name, rest) = text.split_at(comma);
    if !rest.get(..SEPARATOR.len())?.eq_ignore_ascii_case(SEPARATOR) {
        return None;
    }
    let digits: &[u8; 12] = rest[SEPARATOR.len()..].try_into().ok()?;
    let mut isid = [0; 6];
    for (byte, pair) in isid.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |text: u8| char::from(text).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    InitiatorPort::new(name, isid)
}

/// An I_T nexus: an initiator port at a target port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nexus {
    /// The initiator's side.
    pub initiator: InitiatorPort,
    /// RELATIVE TARGET PORT IDENTIFIER of the target's side. Among all ports that lead to the unit each has its own.
    pub target_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISID: [u8; 6] = [0x00, 0x02, 0x3d, 0x00, 0x00, 0x0b];

    fn transport_id(port: &InitiatorPort) -> Vec<u8> {
        let mut bytes = Vec::new();
        port.push_transport_id(&mut |part| bytes.extend_from_slice(part));
        assert_eq!(bytes.len(), port.transport_id_bytes());
        bytes
    }

    #[test]
    fn a_transport_id_is_read_as_it_is_written() {
        let port = InitiatorPort::new(b"iqn.1993-08.org.Debian:01:abc", ISID).expect("a name");
        let bytes = transport_id(&port);
        let text = b"iqn.1993-08.org.debian:01:abc,i,0x00023d00000b";
        assert_eq!(bytes, [&[0x45, 0, 0, 48][..], text, &[0; 2]].concat());
        assert_eq!(parse_transport_id(&bytes, 28), Ok((port.clone(), bytes.len())));
        let upper = bytes.to_ascii_uppercase();
        assert_eq!(parse_transport_id(&upper, 28), Ok((port, bytes.len())), "in either case");
    }

    #[test]
    fn every_length_of_name_is_padded_and_ended() {
        for len in 1..=NAME_BYTES_MAX {
            let port = InitiatorPort::new(&vec![b'n'; len], ISID).expect("a name");
            let bytes = transport_id(&port);
            assert!(bytes.len().is_multiple_of(4) && bytes.len() >= 24 && bytes.ends_with(&[0]), "{len}");
            assert_eq!(parse_transport_id(&bytes, 0), Ok((port, bytes.len())));
        }
        assert_eq!(InitiatorPort::new(&[b'n'; 224], ISID), None);
        assert_eq!(InitiatorPort::new(b"", ISID), None);
        assert_eq!(InitiatorPort::new(b"a,b", ISID), None);
    }

    #[test]
    fn what_is_no_initiator_port_is_refused() {
        let good = transport_id(&InitiatorPort::new(b"iqn.2026-11.a:b", ISID).expect("a name"));
        let refused = |change: &dyn Fn(&mut Vec<u8>), byte: u16| {
            let mut bytes = good.clone();
            change(&mut bytes);
            assert_eq!(parse_transport_id(&bytes, 28), Err(Sense::invalid_field_in_list(28 + byte, None)));
        };
        refused(&|bytes| bytes[0] = 0x05, 0);
        refused(&|bytes| bytes[0] = 0x46, 0);
        refused(&|bytes| bytes.truncate(3), 0);
        refused(&|bytes| bytes[3] += 1, 2);
        refused(&|bytes| bytes[3] += 4, 2);
        refused(&|bytes| bytes[3] = 16, 2);
        refused(&|bytes| bytes[4 + 15] = b';', 4);
        refused(&|bytes| bytes[4 + 20] = b'g', 4);
        refused(&|bytes| bytes[4 + 31] = 0, 4);
        refused(&|bytes| bytes[4..].fill(b'x'), 4);
    }
}
