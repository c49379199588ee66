//! Addresses as the host writes them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

/// Text that is no address of its kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct AddressError {
    what: &'static str,
    text: String,
}

fn error(what: &'static str, text: &str) -> AddressError {
    AddressError {
        what,
        text: text.chars().take(80).collect(),
    }
}

/// A hardware address of Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || error("a hardware address such as 02:00:00:00:00:01", text);
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            // from_str_radix takes a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The address; for a network, its bits behind the prefix may be anything.
    pub address: IpAddr,
    /// How many of its bits are the network's.
    pub length: u8,
}

impl FromStr for Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || error("an address with a prefix length such as 10.1.0.7/24", text);
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        if !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(bad());
        }
        let length: u8 = length.parse().map_err(|_| bad())?;
        let most = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        if length > most {
            return Err(bad());
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Prefix {
    /// The broadcast address of an IPv4 network that has one.
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) if self.length < 31 => {
                let host_bits = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Some(Ipv4Addr::from_bits(address.to_bits() | host_bits))
            }
            _ => None,
        }
    }

    /// The network's first address: all bits behind the prefix cleared, as the kernel wants a route's destination.
    pub fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let host_bits = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & !host_bits).into()
            }
            IpAddr::V6(address) => {
                let host_bits = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                std::net::Ipv6Addr::from_bits(address.to_bits() & !host_bits).into()
            }
        }
    }
}

/// Parses an address without a prefix length.
pub fn ip(text: &str) -> Result<IpAddr, AddressError> {
    text.parse().map_err(|_| error("an IP address", text))
}

/// The bytes of an address in the order of the network.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_pairs() {
        let mac: Mac = "02:00:5E:10:00:ff".parse().unwrap();
        assert_eq!(mac.0, [2, 0, 0x5e, 0x10, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "+2:00:00:00:00:00",
            "gg:00:00:00:00:00",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes_have_a_length_that_fits() {
        let prefix: Prefix = "10.1.2.3/22".parse().unwrap();
        assert_eq!(prefix.broadcast().unwrap().to_string(), "10.1.3.255");
        assert_eq!(prefix.network().to_string(), "10.1.0.0");
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert_eq!(all.network().to_string(), "0.0.0.0");
        let host: Prefix = "10.0.0.1/32".parse().unwrap();
        assert_eq!(
            (host.broadcast(), host.network().to_string()),
            (None, "10.0.0.1".to_owned())
        );
        let six: Prefix = "fd00::1:7/112".parse().unwrap();
        assert_eq!(six.network().to_string(), "fd00::1:0");
        for bad in [
            "10.0.0.1",
            "10.0.0.1/33",
            "fd00::/129",
            "10.0.0/8",
            "10.0.0.1/",
            "10.0.0.1/+8",
            "/8",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }
}
