//! MQTT 3.1.1 packets, as far as a server for our devices needs them: bytes to [`Packet`] and back.
//!
//! Written by hand because the protocol's server half is two hundred lines, and a client library's codec would have
//! brought that library's TLS tree into the server.

/// What a client may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// The first packet. The client id is read and ignored: certificate, or name and password, say who it is.
    Connect {
        /// Seconds; 0 asks for none.
        keep_alive_s: u16,
        /// A last will was asked for.
        will: bool,
        /// User name and password.
        user: Option<(String, Vec<u8>)>,
    },
    /// A message.
    Publish {
        /// Topic name.
        topic: String,
        /// 0 or 1; 2 is refused by the caller.
        qos: u8,
        /// Packet id, 0 for QoS 0.
        id: u16,
        /// The message.
        payload: Vec<u8>,
    },
    /// A message of ours arrived.
    PubAck,
    /// Topic filters with the QoS asked for.
    Subscribe {
        /// Packet id.
        id: u16,
        /// At least one.
        filters: Vec<(String, u8)>,
    },
    /// Topic filters.
    Unsubscribe {
        /// Packet id.
        id: u16,
        /// At least one.
        filters: Vec<String>,
    },
    /// Still there.
    PingReq,
    /// Good bye.
    Disconnect,
}

/// Bytes that break the protocol, or a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Longer than the limit.
    #[error("a packet of {0} bytes is over the limit")]
    TooLong(usize),
    /// A packet that clients do not send, or with wrong flags.
    #[error("packet type and flags {0:#04x} are not allowed here")]
    Type(u8),
    /// Not MQTT 3.1.1.
    #[error("not MQTT 3.1.1")]
    Version,
    /// The fields do not fill the packet, or are not allowed.
    #[error("a malformed packet of type {0}")]
    Malformed(u8),
}

/// Reads the packet at the start of `bytes`; `None` while it is not complete. Gives its length too.
///
/// # Errors
/// When it can never become a packet of at most `max` bytes.
pub fn read(bytes: &[u8], max: usize) -> Result<Option<(Packet, usize)>, CodecError> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let mut length = 0;
    let mut header = 1;
    loop {
        if header > 4 {
            return Err(CodecError::Malformed(first >> 4));
        }
        let Some(byte) = bytes.get(header) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (header - 1));
        header += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if length > max {
        return Err(CodecError::TooLong(length));
    }
    let Some(body) = bytes.get(header..header + length) else { return Ok(None) };
    let packet = body_of(*first, &mut Fields { kind: first >> 4, rest: body })?;
    Ok(Some((packet, header + length)))
}

fn body_of(first: u8, fields: &mut Fields<'_>) -> Result<Packet, CodecError> {
    let malformed = CodecError::Malformed(first >> 4);
    let packet = match (first >> 4, first & 0x0f) {
        (1, 0) => connect(fields)?,
        (3, flags) => {
            let qos = (flags >> 1) & 3;
            let topic = fields.text()?;
            let id = if qos > 0 { fields.id()? } else { 0 };
            if qos == 3 || topic.contains(['+', '#', '\0']) {
                return Err(malformed);
            }
            Packet::Publish { topic, qos, id, payload: std::mem::take(&mut fields.rest).to_vec() }
        }
        (4, 0) => {
            fields.id()?;
            Packet::PubAck
        }
        (8, 2) => {
            let id = fields.id()?;
            let mut filters = Vec::new();
            while !fields.rest.is_empty() {
                filters.push((fields.text()?, fields.byte()?));
            }
            if filters.is_empty() || filters.iter().any(|(_, qos)| *qos > 2) {
                return Err(malformed);
            }
            Packet::Subscribe { id, filters }
        }
        (10, 2) => {
            let id = fields.id()?;
            let mut filters = Vec::new();
            while !fields.rest.is_empty() {
                filters.push(fields.text()?);
            }
            if filters.is_empty() {
                return Err(malformed);
            }
            Packet::Unsubscribe { id, filters }
        }
        (12, 0) => Packet::PingReq,
        (14, 0) => Packet::Disconnect,
        _ => return Err(CodecError::Type(first)),
    };
    if fields.rest.is_empty() { Ok(packet) } else { Err(malformed) }
}

fn connect(fields: &mut Fields<'_>) -> Result<Packet, CodecError> {
    if fields.text()? != "MQTT" || fields.byte()? != 4 {
        return Err(CodecError::Version);
    }
    let flags = fields.byte()?;
    let keep_alive_s = fields.u16()?;
    fields.bytes()?;
    let will = flags & 0x04 != 0;
    let bad_will = if will { flags & 0x18 == 0x18 } else { flags & 0x38 != 0 };
    if flags & 1 != 0 || bad_will || flags & 0xc0 == 0x40 {
        return Err(CodecError::Malformed(1));
    }
    if will {
        fields.bytes()?;
        fields.bytes()?;
    }
    let name = if flags & 0x80 != 0 { Some(fields.text()?) } else { None };
    let password = if flags & 0x40 != 0 { fields.bytes()?.to_vec() } else { Vec::new() };
    Ok(Packet::Connect { keep_alive_s, will, user: name.map(|name| (name, password)) })
}

struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(CodecError::Malformed(self.kind))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, CodecError> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, CodecError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn id(&mut self) -> Result<u16, CodecError> {
        match self.u16()? {
            0 => Err(CodecError::Malformed(self.kind)),
            id => Ok(id),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let kind = self.kind;
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| CodecError::Malformed(kind))?;
        Ok(text.to_string())
    }
}

/// CONNACK; 0 accepts, 5 is "not authorized".
#[must_use]
pub fn connack(code: u8) -> Vec<u8> {
    vec![0x20, 2, 0, code]
}

/// PUBACK.
#[must_use]
pub fn puback(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![0x40, 2, high, low]
}

/// SUBACK: granted QoS or 0x80 per filter.
#[must_use]
pub fn suback(id: u16, codes: &[u8]) -> Vec<u8> {
    with_header(0x90, &[&id.to_be_bytes(), codes])
}

/// UNSUBACK.
#[must_use]
pub fn unsuback(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![0xb0, 2, high, low]
}

/// PINGRESP.
#[must_use]
pub fn pingresp() -> Vec<u8> {
    vec![0xd0, 0]
}

/// PUBLISH with QoS 1, or QoS 0 when there is no id.
#[must_use]
pub fn publish(topic: &str, id: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(topic.len()).expect("our topics are short").to_be_bytes();
    match id {
        Some(id) => with_header(0x32, &[&length, topic.as_bytes(), &id.to_be_bytes(), payload]),
        None => with_header(0x30, &[&length, topic.as_bytes(), payload]),
    }
}

fn with_header(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 5);
    out.push(first);
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.push(byte);
            break;
        }
        out.push(byte | 0x80);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x1e\x00\x04gw-1";
    const LOGIN: &[u8] = b"\x10\x1c\x00\x04MQTT\x04\xc2\x00\x1e\x00\x04gw-1\x00\x04anna\x00\x04pass";
    const SUBSCRIBE: &[u8] = b"\x82\x08\x00\x01\x00\x03a/b\x01";

    fn check(bytes: &[u8]) -> Packet {
        let (packet, used) = read(bytes, 1000).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end], 1000), Ok(None), "{end} bytes were enough");
        }
        packet
    }

    #[test]
    fn packets_read_as_written_and_no_prefix_is_a_packet() {
        assert_eq!(check(CONNECT), Packet::Connect { keep_alive_s: 30, will: false, user: None });
        let user = Some(("anna".into(), b"pass".to_vec()));
        assert_eq!(check(LOGIN), Packet::Connect { keep_alive_s: 30, will: false, user });
        assert_eq!(check(SUBSCRIBE), Packet::Subscribe { id: 1, filters: vec![("a/b".into(), 1)] });
        assert_eq!(check(b"\xc0\x00"), Packet::PingReq);
        for size in [0, 200, 900] {
            let payload = vec![7; size];
            let read = check(&publish("t", Some(5), &payload));
            assert_eq!(read, Packet::Publish { topic: "t".into(), qos: 1, id: 5, payload });
        }
    }

    #[test]
    fn shorter_and_longer_lengths_are_malformed_not_panics() {
        for good in [CONNECT, LOGIN, SUBSCRIBE, &publish("t", Some(5), b"")[..]] {
            for length in 0..good[1] {
                let mut bytes = good.to_vec();
                bytes[1] = length;
                let result = read(&bytes, 1000);
                assert!(
                    matches!(result, Err(_) | Ok(Some((Packet::Publish { .. }, _)))),
                    "{length}: {result:?}"
                );
            }
            let mut longer = good.to_vec();
            longer[1] += 1;
            longer.push(0);
            assert!(matches!(read(&longer, 1000), Err(_) | Ok(Some((Packet::Publish { .. }, _)))));
        }
    }

    #[test]
    fn a_long_packet_is_refused_from_its_header() {
        assert_eq!(read(b"\x30\xff\xff\x7f", 1000), Err(CodecError::TooLong(2_097_151)));
        assert_eq!(read(b"\x30\xff\xff\xff\xff\x01", 1000), Err(CodecError::Malformed(3)));
    }

    #[test]
    fn wildcards_in_a_publish_and_other_versions_are_refused() {
        assert_eq!(read(&publish("a/+", Some(1), b""), 1000), Err(CodecError::Malformed(3)));
        assert_eq!(read(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x1e\x00\x04gw-1", 1000), Err(CodecError::Version));
        assert_eq!(read(b"\x20\x02\x00\x00", 1000), Err(CodecError::Type(0x20)));
    }
}
