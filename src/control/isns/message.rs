//! iSNS messages (RFC 4171), as far as a registering client needs them: bytes only.

use std::net::{IpAddr, SocketAddr};

/// Bytes before the payload (section 5.1).
pub const HEADER_BYTES: usize = 12;

/// Bytes of attributes after which a further message is begun. A payload may have 65,532, but open-isns closes the
/// connection at messages of more than 8 KiB, and its answer repeats what was sent.
const PAYLOAD_BYTES_MAX: usize = 4 * 1024;

/// The only version there is.
const VERSION: u16 = 1;

/// Registration of attributes (section 5.6.5.1).
pub const DEV_ATTR_REG: u16 = 0x0001;
/// Deregistration (section 5.6.5.4).
pub const DEV_DEREG: u16 = 0x0004;
/// Entity Status Inquiry (section 5.6.5.13), which the server sends.
pub const ESI: u16 = 0x000d;
/// Added to a request's function, it is the response's.
pub const RESPONSE: u16 = 0x8000;

const FLAG_CLIENT: u16 = 0x8000;
const FLAG_REPLACE: u16 = 0x1000;
const FLAG_LAST: u16 = 0x0800;
const FLAG_FIRST: u16 = 0x0400;

/// Attributes by their tags (section 6.1).
mod tag {
    pub const DELIMITER: u32 = 0;
    pub const ENTITY_IDENTIFIER: u32 = 1;
    pub const ENTITY_PROTOCOL: u32 = 2;
    pub const REGISTRATION_PERIOD: u32 = 6;
    pub const PORTAL_ADDRESS: u32 = 16;
    pub const PORTAL_PORT: u32 = 17;
    pub const ESI_INTERVAL: u32 = 19;
    pub const ESI_PORT: u32 = 20;
    pub const ISCSI_NAME: u32 = 32;
    pub const ISCSI_NODE_TYPE: u32 = 33;
    pub const ISCSI_ALIAS: u32 = 34;
    pub const PG_PORTAL_ADDRESS: u32 = 49;
    pub const PG_PORTAL_PORT: u32 = 50;
    pub const PG_TAG: u32 = 51;
}

/// Entity protocol: iSCSI (section 6.2.2).
const PROTOCOL_ISCSI: u32 = 2;
/// iSCSI node type: target (section 6.4.2).
const NODE_TARGET: u32 = 1;
/// The tag that a portal and a node have in common when nobody says another (section 6.5.4).
const PG_TAG_DEFAULT: u16 = 1;

/// What is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// The entity's identifier: names this server among all.
    pub entity: String,
    /// Name and alias of each target.
    pub targets: Vec<(String, String)>,
    /// Where they are reached, with the portal group tag.
    pub portals: Vec<(SocketAddr, u16)>,
    /// How long it is valid without being renewed, in seconds.
    pub period_s: u32,
    /// Where the server may ask whether the first portal lives, and how often, in seconds.
    pub inquiry: Option<(u16, u32)>,
}

/// Attributes, one after another.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, tag: u32, value: &[u8]) -> &mut Attributes {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&tag.to_be_bytes());
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }

    fn number(&mut self, tag: u32, value: u32) -> &mut Attributes {
        self.bytes(tag, &value.to_be_bytes())
    }

    /// Text ends with a zero byte, and is filled with more up to a multiple of four (section 6).
    fn text(&mut self, tag: u32, text: &str) -> &mut Attributes {
        let mut value = text.as_bytes().to_vec();
        value.resize((value.len() + 1).next_multiple_of(4), 0);
        self.bytes(tag, &value)
    }

    /// An address in the form of IPv6 (section 6.3.1).
    fn address(&mut self, tag: u32, address: IpAddr) -> &mut Attributes {
        let octets = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        self.bytes(tag, &octets)
    }
}

impl Registration {
    /// Who speaks: one of the nodes that are or will be registered.
    pub fn source(&self) -> Option<&str> {
        self.targets.first().map(|(name, _)| name.as_str())
    }

    /// The payloads of the messages that register everything, the first in place of whatever there was before.
    pub fn payloads(&self, source: &str) -> Vec<(bool, Vec<u8>)> {
        let mut messages = Vec::new();
        let mut first = Attributes::default();
        first.text(tag::ISCSI_NAME, source).bytes(tag::DELIMITER, &[]);
        first.text(tag::ENTITY_IDENTIFIER, &self.entity).number(tag::ENTITY_PROTOCOL, PROTOCOL_ISCSI);
        first.number(tag::REGISTRATION_PERIOD, self.period_s);
        for (index, (portal, _)) in self.portals.iter().enumerate() {
            first.address(tag::PORTAL_ADDRESS, portal.ip()).number(tag::PORTAL_PORT, u32::from(portal.port()));
            if let (0, Some((port, interval_s))) = (index, self.inquiry) {
                first.number(tag::ESI_INTERVAL, interval_s).number(tag::ESI_PORT, u32::from(port));
            }
        }
        let mut message = first;
        for target in &self.targets {
            if message.0.len() > PAYLOAD_BYTES_MAX {
                messages.push((messages.is_empty(), std::mem::take(&mut message.0)));
                message.text(tag::ISCSI_NAME, source).text(tag::ENTITY_IDENTIFIER, &self.entity);
                message.bytes(tag::DELIMITER, &[]);
            }
            self.append_target(&mut message, target);
        }
        messages.push((messages.is_empty(), message.0));
        messages
    }

    fn append_target(&self, message: &mut Attributes, (name, alias): &(String, String)) {
        message.text(tag::ISCSI_NAME, name).number(tag::ISCSI_NODE_TYPE, NODE_TARGET).text(tag::ISCSI_ALIAS, alias);
        for (portal, group) in self.portals.iter().filter(|(_, group)| *group != PG_TAG_DEFAULT) {
            message.address(tag::PG_PORTAL_ADDRESS, portal.ip()).number(tag::PG_PORTAL_PORT, u32::from(portal.port()));
            message.number(tag::PG_TAG, u32::from(*group));
        }
    }
}

/// The payload that renews an entity's registration and changes nothing.
pub fn renewal(source: &str, entity: &str, period_s: u32) -> Vec<u8> {
    let mut attributes = Attributes::default();
    attributes.text(tag::ISCSI_NAME, source).text(tag::ENTITY_IDENTIFIER, entity).bytes(tag::DELIMITER, &[]);
    attributes.text(tag::ENTITY_IDENTIFIER, entity).number(tag::ENTITY_PROTOCOL, PROTOCOL_ISCSI);
    attributes.number(tag::REGISTRATION_PERIOD, period_s);
    attributes.0
}

/// The payload that takes an entity out.
pub fn deregistration(source: &str, entity: &str) -> Vec<u8> {
    let mut attributes = Attributes::default();
    attributes.text(tag::ISCSI_NAME, source).bytes(tag::DELIMITER, &[]).text(tag::ENTITY_IDENTIFIER, entity);
    attributes.0
}

/// A message of ours, whole in one PDU.
pub fn encode(function: u16, replace: bool, transaction: u16, payload: &[u8]) -> Vec<u8> {
    let flags = FLAG_CLIENT | FLAG_FIRST | FLAG_LAST | if replace { FLAG_REPLACE } else { 0 };
    let len = u16::try_from(payload.len()).expect("a payload of ours is far shorter");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    for field in [VERSION, function, len, flags, transaction, 0] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The header of a PDU that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which function.
    pub function: u16,
    /// Bytes of payload behind the header.
    pub payload_bytes: usize,
    /// No more PDU of this message follows.
    pub last: bool,
    /// Which of our messages it answers.
    pub transaction: u16,
}

impl Header {
    /// Read one; `None` for another version.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let field = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        (field(0) == VERSION).then(|| Header {
            function: field(2),
            payload_bytes: usize::from(field(4)),
            last: field(6) & FLAG_LAST != 0,
            transaction: field(8),
        })
    }
}

/// The status that a response begins with (section 5.4).
pub fn status(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|status| u32::from_be_bytes(*status))
}

/// A status in words.
pub fn status_text(status: u32) -> String {
    let words = match status {
        1 => "unknown error",
        2 => "message format error",
        3 => "invalid registration",
        5 => "invalid query",
        6 => "source unknown",
        7 => "source absent",
        8 => "source unauthorized",
        9 => "no such entry",
        10 => "version not supported",
        11 => "internal error",
        12 => "busy",
        13 => "option not understood",
        14 => "invalid update",
        15 => "message not supported",
        19 => "registration feature not supported",
        21 => "ESI not available",
        22 => "invalid deregistration",
        _ => return format!("status {status}"),
    };
    format!("{words} (status {status})")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn registration(targets: usize) -> Registration {
        Registration {
            entity: "e".into(),
            targets: (0..targets).map(|n| (format!("iqn.2026-11.io.x:t{n}"), format!("t{n}"))).collect(),
            portals: vec![("192.0.2.1:3260".parse().unwrap(), 1)],
            period_s: 300,
            inquiry: None,
        }
    }

    /// Tags and values of a payload.
    fn read(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut attributes = vec![];
        while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let (value, rest) = rest.split_at(word(4) as usize);
            assert_eq!(value.len() % 4, 0);
            attributes.push((word(0), value.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        attributes
    }

    #[test]
    fn a_registration_names_the_entity_its_portals_and_its_nodes_in_this_order() {
        let mut registration = registration(1);
        registration.inquiry = Some((4000, 60));
        registration.portals.push(("[2001:db8::1]:3261".parse().unwrap(), 2));
        let messages = registration.payloads("iqn.2026-11.io.x:t0");
        assert_eq!(messages.len(), 1);
        assert!(messages[0].0, "in place of what there was");
        let attributes = read(&messages[0].1);
        let tags: Vec<u32> = attributes.iter().map(|(tag, _)| *tag).collect();
        assert_eq!(tags, [32, 0, 1, 2, 6, 16, 17, 19, 20, 16, 17, 32, 33, 34, 49, 50, 51]);
        assert_eq!(attributes[0].1, b"iqn.2026-11.io.x:t0\0");
        assert_eq!(attributes[2].1, b"e\0\0\0");
        assert_eq!(attributes[5].1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1]);
        assert_eq!(attributes[6].1, 3260u32.to_be_bytes());
        assert_eq!(attributes[8].1, 4000u32.to_be_bytes());
        assert_eq!(attributes[16].1, [0, 0, 0, 2]);
    }

    #[test]
    fn many_targets_take_several_messages_and_none_is_lost() {
        let registration = registration(4096);
        let messages = registration.payloads("iqn.2026-11.io.x:t0");
        assert!(messages.len() > 2);
        let mut names = 0;
        for (index, (replaces, payload)) in messages.iter().enumerate() {
            assert_eq!(*replaces, index == 0);
            assert!(payload.len() < 6000 && payload.len() % 4 == 0);
            names += read(payload).iter().skip(1).filter(|(tag, _)| *tag == 32).count();
        }
        assert_eq!(names, 4096);
    }

    #[test]
    fn headers_are_read_as_they_are_written() {
        let bytes = encode(DEV_ATTR_REG, true, 7, &[0; 8]);
        assert_eq!(bytes[..12], [0, 1, 0, 1, 0, 8, 0x9c, 0, 0, 7, 0, 0]);
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(header, Header { function: DEV_ATTR_REG, payload_bytes: 8, last: true, transaction: 7 });
        assert!(Header::parse(&[0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        assert_eq!(status(&[0, 0, 0, 8, 1]), Some(8));
        assert_eq!(status(&[0, 0]), None);
        assert!(status_text(8).contains("unauthorized") && status_text(99).contains("99"));
    }
}
