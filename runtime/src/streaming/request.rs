//! What a client asks for in its HTTP request, and which protocol it gets.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    port_forward,
    remote_command::{SPDY_PROTOCOLS, Version},
    tokens::JobKind,
};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// SPDY for forwarded ports in a WebSocket: `SPDY/3.1+` in front of the name of the protocol that it carries.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What is spoken on the upgraded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// SPDY, a stream for each of a command's.
    SpdyCommand(Version),
    /// SPDY, two streams for each forwarded connection.
    SpdyPorts,
    /// SPDY for forwarded connections in the binary messages of a WebSocket.
    TunnelledPorts,
    /// WebSocket, a channel for each stream of a command.
    WebSocketCommand {
        /// Of the protocol.
        version: Version,
        /// Bytes travel as text.
        base64: bool,
    },
    /// WebSocket, two channels for each port.
    WebSocketPorts {
        /// Bytes travel as text.
        base64: bool,
    },
}

/// Why a connection is not upgraded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not ask for it.
    #[error(
        "this URL is for a connection that is upgraded to SPDY/3.1 or WebSocket, and the request does not ask for that"
    )]
    NoUpgrade,
    /// It offers no protocol.
    #[error("the request has no header X-Stream-Protocol-Version")]
    NoProtocol,
    /// It offers only protocols that are not known.
    #[error("none of the protocols that the client offers is known here; these are: {}", .0.join(", "))]
    UnknownProtocols(Vec<String>),
    /// Its WebSocket handshake is none.
    #[error("the request is no WebSocket handshake of version 13 with a key")]
    BadHandshake,
}

impl Refused {
    /// The status and further headers of the answer.
    pub fn answer(&self) -> (StatusCode, HeaderMap) {
        let mut headers = HeaderMap::new();
        let status = match self {
            Self::UnknownProtocols(known) => {
                for name in known {
                    if let Ok(name) = HeaderValue::from_str(name) {
                        headers.append(ACCEPTED_PROTOCOLS, name);
                    }
                }
                StatusCode::FORBIDDEN
            }
            _ => StatusCode::BAD_REQUEST,
        };
        (status, headers)
    }
}

/// Chooses the protocol for a job of this kind, and the headers of the answer that says so.
///
/// # Errors
///
/// [`Refused`].
pub fn negotiate(kind: JobKind, request: &HeaderMap) -> Result<(Spoken, HeaderMap), Refused> {
    if !listed(request, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(Refused::NoUpgrade);
    }
    let upgrades = |name: &str| {
        let mut wanted = listed(request, &header::UPGRADE);
        wanted.any(|token| token.eq_ignore_ascii_case(name))
    };
    let (spoken, upgrade, mut answer) = if upgrades("websocket") {
        let (spoken, answer) = web_socket(kind, request)?;
        (spoken, "websocket", answer)
    } else if upgrades("SPDY/3.1") {
        let (spoken, answer) = spdy(kind, request)?;
        (spoken, "SPDY/3.1", answer)
    } else {
        return Err(Refused::NoUpgrade);
    };
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
    Ok((spoken, answer))
}

fn spdy(kind: JobKind, request: &HeaderMap) -> Result<(Spoken, HeaderMap), Refused> {
    let offered: Vec<&str> = listed(request, &STREAM_PROTOCOL).collect();
    if offered.is_empty() {
        return Err(Refused::NoProtocol);
    }
    let known: &[&str] = match kind {
        JobKind::PortForward => &[port_forward::SPDY_PROTOCOL],
        _ => &SPDY_PROTOCOLS,
    };
    let name = chosen(&offered, known)?;
    let spoken = Version::over_spdy(name).map_or(Spoken::SpdyPorts, Spoken::SpdyCommand);
    let mut answer = HeaderMap::new();
    answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok((spoken, answer))
}

fn web_socket(kind: JobKind, request: &HeaderMap) -> Result<(Spoken, HeaderMap), Refused> {
    let key = request.get(header::SEC_WEBSOCKET_KEY);
    let version = request.get(header::SEC_WEBSOCKET_VERSION);
    let (Some(key), true) = (key, version.is_some_and(|version| version == "13")) else {
        return Err(Refused::BadHandshake);
    };
    let mut answer = HeaderMap::new();
    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept).map_err(|_| Refused::BadHandshake)?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    let known: &[&str] = match kind {
        JobKind::PortForward => &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"],
        _ => &[
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v4.base64.channel.k8s.io",
            "channel.k8s.io",
            "base64.channel.k8s.io",
        ],
    };
    let offered: Vec<&str> = listed(request, &header::SEC_WEBSOCKET_PROTOCOL).collect();
    // Clients that offer nothing mean what was there before there was a choice.
    let name = if offered.is_empty() {
        "channel.k8s.io"
    } else {
        let name = chosen(&offered, known)?;
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        name
    };
    let base64 = name.contains("base64.");
    let spoken = match kind {
        JobKind::PortForward if name == TUNNEL => Spoken::TunnelledPorts,
        JobKind::PortForward => Spoken::WebSocketPorts { base64 },
        _ => Spoken::WebSocketCommand {
            version: match name.split('.').next() {
                Some("v5") => Version::V5,
                Some("v4") => Version::V4,
                // Resizing has its channel in all of them.
                _ => Version::V3,
            },
            base64,
        },
    };
    Ok((spoken, answer))
}

/// The first that the client offers of those that are known.
fn chosen(offered: &[&str], known: &[&'static str]) -> Result<&'static str, Refused> {
    let mut both = offered
        .iter()
        .filter_map(|name| known.iter().find(|known| *known == name));
    both.next()
        .copied()
        .ok_or_else(|| Refused::UnknownProtocols(known.iter().map(|name| (*name).to_owned()).collect()))
}

/// The tokens of a header that is a list, in one line or several.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    fn spdy(protocols: &[&str]) -> HeaderMap {
        let mut lines = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        lines.extend(protocols.iter().map(|name| ("X-Stream-Protocol-Version", *name)));
        headers(&lines)
    }

    fn web_socket(protocols: &str) -> HeaderMap {
        headers(&[
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", protocols),
        ])
    }

    #[test]
    fn a_spdy_client_gets_the_first_of_its_protocols_that_is_known() {
        let offered = [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
            "channel.k8s.io",
        ];
        let (spoken, answer) = negotiate(JobKind::Exec, &spdy(&offered)).unwrap();
        assert_eq!(spoken, Spoken::SpdyCommand(Version::V4));
        assert_eq!(answer["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(answer["upgrade"], "SPDY/3.1");
        let (spoken, _) = negotiate(JobKind::Attach, &spdy(&["channel.k8s.io"])).unwrap();
        assert_eq!(spoken, Spoken::SpdyCommand(Version::V1));
        let (spoken, _) = negotiate(JobKind::PortForward, &spdy(&["portforward.k8s.io"])).unwrap();
        assert_eq!(spoken, Spoken::SpdyPorts);
    }

    #[test]
    fn clients_without_a_protocol_are_told_what_is_wrong() {
        let refused = |kind, headers| {
            let refused = negotiate(kind, &headers).unwrap_err();
            (refused.answer().0.as_u16(), refused)
        };
        assert_eq!(refused(JobKind::Exec, spdy(&[])), (400, Refused::NoProtocol));
        assert_eq!(refused(JobKind::Exec, headers(&[])), (400, Refused::NoUpgrade));
        let h2c = headers(&[("Connection", "Upgrade"), ("Upgrade", "h2c")]);
        assert_eq!(refused(JobKind::Exec, h2c), (400, Refused::NoUpgrade));
        let (status, unknown) = refused(JobKind::PortForward, spdy(&["v4.channel.k8s.io"]));
        assert_eq!(status, 403);
        assert_eq!(
            unknown.answer().1["x-accepted-stream-protocol-versions"],
            "portforward.k8s.io"
        );
        let mut keyless = web_socket("v4.channel.k8s.io");
        keyless.remove("sec-websocket-key");
        assert_eq!(refused(JobKind::Exec, keyless), (400, Refused::BadHandshake));
        assert_eq!(refused(JobKind::Exec, web_socket("chat")).0, 403);
    }

    #[test]
    fn web_socket_clients_get_their_versions() {
        let (spoken, answer) =
            negotiate(JobKind::Exec, &web_socket("v5.channel.k8s.io, v4.channel.k8s.io")).unwrap();
        let version = Version::V5;
        assert_eq!(
            spoken,
            Spoken::WebSocketCommand {
                version,
                base64: false
            }
        );
        // The example of RFC 6455, section 1.3.
        assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer["sec-websocket-protocol"], "v5.channel.k8s.io");
        for (name, version, base64) in [
            ("v4.base64.channel.k8s.io", Version::V4, true),
            ("base64.channel.k8s.io", Version::V3, true),
            ("channel.k8s.io", Version::V3, false),
            ("", Version::V3, false),
        ] {
            let (spoken, answer) = negotiate(JobKind::Attach, &web_socket(name)).unwrap();
            assert_eq!(spoken, Spoken::WebSocketCommand { version, base64 }, "{name}");
            assert_eq!(answer.contains_key("sec-websocket-protocol"), !name.is_empty());
        }
        let (spoken, _) = negotiate(JobKind::PortForward, &web_socket(TUNNEL)).unwrap();
        assert_eq!(spoken, Spoken::TunnelledPorts);
        let (spoken, _) = negotiate(JobKind::PortForward, &web_socket("v4.channel.k8s.io")).unwrap();
        assert_eq!(spoken, Spoken::WebSocketPorts { base64: false });
    }
}
