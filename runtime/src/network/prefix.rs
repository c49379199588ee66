//! Addresses with a prefix length, as CNI results, routes and pod CIDRs have them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An address with a prefix length. Written such as "10.1.0.7/24" or "fd00::7/64".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpPrefix {
    /// The address; of a network, its bits behind the prefix may be anything.
    pub address: IpAddr,
    /// How many of its bits are the network's: at most 32 or 128.
    pub length: u8,
}

/// Text that is no address with a prefix length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix length, such as 10.1.0.7/24 or fd00::7/64")]
pub struct PrefixError(String);

impl IpPrefix {
    /// The address alone: /32 or /128.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            length: most(address),
        }
    }

    /// The network: all bits behind the prefix cleared.
    #[must_use]
    pub fn network(&self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let rest = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & !rest).into()
            }
            IpAddr::V6(address) => {
                let rest = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & !rest).into()
            }
        };
        Self {
            address,
            length: self.length,
        }
    }
}

fn most(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for IpPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let bad = || PrefixError(text.chars().take(80).collect());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        if !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(bad());
        }
        let length: u8 = length.parse().map_err(|_| bad())?;
        if length > most(address) {
            return Err(bad());
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_written_and_have_a_network() {
        for (text, network) in [
            ("10.1.2.3/22", "10.1.0.0/22"),
            ("10.1.2.3/32", "10.1.2.3/32"),
            ("10.1.2.3/0", "0.0.0.0/0"),
            ("fd00::1:7/112", "fd00::1:0/112"),
            ("::/0", "::/0"),
        ] {
            let prefix: IpPrefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), text);
            assert_eq!(prefix.network().to_string(), network);
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "fd00::/129",
            "10.0.0/8",
            "10.0.0.1/+8",
            "/8",
            "10.0.0.1/",
        ] {
            assert!(bad.parse::<IpPrefix>().is_err(), "{bad:?}");
        }
    }
}
