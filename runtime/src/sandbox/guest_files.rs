//! The texts of `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` in a pod's containers.

use std::fmt::Write as _;

use bulkhead_proto::cri::DnsConfig;

/// `/etc/resolv.conf` as the pod's DNS configuration has it; `None` for a pod without one, which gets the host's.
pub(super) fn resolv_conf(dns: Option<&DnsConfig>) -> Option<String> {
    let dns = dns?;
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    Some(text)
}

/// `/etc/hosts` of a pod with these addresses, which may be none.
pub(super) fn hosts(hostname: &str, addresses: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                    fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
        .to_owned();
    if addresses.is_empty() {
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_what_the_pod_says_in_its_order() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.local".into(), "local".into()],
            options: vec!["ndots:8".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns)).unwrap(),
            "search a.local local\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:8\n"
        );
        assert_eq!(resolv_conf(Some(&DnsConfig::default())).unwrap(), "");
        assert_eq!(resolv_conf(None), None);
    }

    #[test]
    fn a_pod_finds_itself_by_name() {
        let own = |addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let text = hosts("web-0", &addresses);
            let lines = text.lines().filter_map(|line| line.strip_suffix("\tweb-0"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(own(&[]), ["127.0.1.1"]);
        assert_eq!(own(&["10.1.0.7", "fd00::7"]), ["10.1.0.7", "fd00::7"]);
    }
}
