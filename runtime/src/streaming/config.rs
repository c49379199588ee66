//! Where the streaming server listens.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The streaming server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingConfig {
    /// The address that it listens on and that URLs have.
    pub address: IpAddr,
    /// The port; 0 for any.
    pub port: u16,
    /// Certificates in PEM, the server's own first; empty for no TLS.
    pub tls_certificate: PathBuf,
    /// The certificate's key in PEM; empty for no TLS.
    pub tls_key: PathBuf,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
        }
    }
}

impl StreamingConfig {
    /// Where it listens.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Certificate and key, where it speaks TLS.
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        let empty = self.tls_certificate.as_os_str().is_empty();
        (!empty).then_some((self.tls_certificate.as_path(), self.tls_key.as_path()))
    }

    /// Checks it; what is wrong is told with the key, its value and the reason.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn validate(&self) -> Result<(), (&'static str, String, &'static str)> {
        if self.address.is_unspecified() {
            return Err((
                "address",
                self.address.to_string(),
                "clients are told this address, so it must be one of the host's own",
            ));
        }
        let paths = [
            ("tls_certificate", &self.tls_certificate),
            ("tls_key", &self.tls_key),
        ];
        for (key, path) in paths {
            if path.is_relative() && !path.as_os_str().is_empty() {
                return Err((key, path.display().to_string(), "it must be an absolute path"));
            }
        }
        if self.tls_certificate.as_os_str().is_empty() != self.tls_key.as_os_str().is_empty() {
            return Err((
                "tls_key",
                self.tls_key.display().to_string(),
                "a certificate and its key are given together or not at all",
            ));
        }
        Ok(())
    }
}
