//! TLS as a `hosts.toml` asks for it: further authorities, certificates of our own, or no look at the other's at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::hosts::HostOptions;

/// What the files that a host's settings name have in them now.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct TlsMaterial {
    authorities: Vec<File>,
    /// Certificate, and its key if that is in a file of its own.
    own: Vec<(File, Option<File>)>,
    skip_verify: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct File {
    path: PathBuf,
    content: Vec<u8>,
}

impl File {
    fn read(path: &Path) -> Result<Self, String> {
        let content =
            fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            content,
        })
    }

    fn refuse(&self, reason: &str) -> String {
        format!("{} {reason}; put PEM there", self.path.display())
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let read = CertificateDer::pem_slice_iter(&self.content).collect::<Result<Vec<_>, _>>();
        match read {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(self.refuse("has no certificate in it")),
            Err(error) => Err(self.refuse(&format!("is damaged ({error})"))),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(&self.content)
            .map_err(|error| self.refuse(&format!("has no private key that can be read in it ({error})")))
    }
}

impl TlsMaterial {
    pub(super) fn read(options: &HostOptions) -> Result<Self, String> {
        let authorities = options.ca.iter().map(|path| File::read(path));
        let own = options.client.iter().map(|pair| {
            let key = pair.key.as_deref().map(File::read).transpose()?;
            Ok((File::read(&pair.certificate)?, key))
        });
        Ok(Self {
            authorities: authorities.collect::<Result<_, _>>()?,
            own: own.collect::<Result<_, String>>()?,
            skip_verify: options.skip_verify,
        })
    }

    /// The same for hosts that are none of the registry's: it is not told who we are.
    pub(super) fn anonymous(&self) -> Self {
        Self {
            own: Vec::new(),
            ..self.clone()
        }
    }

    /// Whether it is as for any host.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the host's certificates, so it may wait for the disk.
    pub(super) fn config(&self) -> Result<ClientConfig, String> {
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
        let verifier: Arc<dyn ServerCertVerifier> = if self.skip_verify {
            Arc::new(Unverified(Arc::clone(&provider)))
        } else {
            let mut extra = Vec::new();
            for file in &self.authorities {
                extra.extend(file.certificates()?);
            }
            let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider));
            Arc::new(verifier.map_err(|error| {
                let paths: Vec<_> = self
                    .authorities
                    .iter()
                    .map(|file| file.path.display().to_string())
                    .collect();
                format!("the certificates in {} cannot be used: {error}", paths.join(", "))
            })?)
        };
        let mut keys = Vec::new();
        for (certificate, key) in &self.own {
            let key_file = key.as_ref().unwrap_or(certificate);
            let certified = CertifiedKey::from_der(certificate.certificates()?, key_file.key()?, &provider);
            keys.push(Arc::new(certified.map_err(|error| {
                key_file.refuse(&format!(
                    "has no key for the certificate in {} ({error})",
                    certificate.path.display()
                ))
            })?));
        }
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = if keys.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_resolver(Arc::new(OwnCertificates(keys)))
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let own = self.own.iter().map(|(certificate, _)| &certificate.path);
        f.debug_struct("TlsMaterial")
            .field(
                "authorities",
                &self.authorities.iter().map(|file| &file.path).collect::<Vec<_>>(),
            )
            .field("own", &own.collect::<Vec<_>>())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// Certificates to be shown: the first whose authority the other side trusts.
#[derive(Debug)]
struct OwnCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for OwnCertificates {
    fn resolve(&self, trusted: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // An issuer's name stands in a certificate byte for byte as the other side sends it.
        let is_trusted = |key: &CertifiedKey| {
            trusted.iter().any(|name| {
                !name.is_empty()
                    && key
                        .cert
                        .iter()
                        .any(|certificate| certificate.windows(name.len()).any(|window| window == *name))
            })
        };
        let chosen = self.0.iter().find(|key| is_trusted(key));
        chosen.or_else(|| self.0.first()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any certificate, as `skip_verify` wants it; that the other side has its key is still seen to.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
