//! Certificates of a private authority, as operators make them: with the openssl command.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::tools::{run, text};

/// An authority, and a directory with what it has signed.
pub struct Authority {
    directory: tempfile::TempDir,
}

/// A certificate with its key.
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

const NEW_KEY: [&str; 6] = [
    "req",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

impl Authority {
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("ca.crt"), directory.path().join("ca.key"));
        let subject = format!("/CN={name}");
        let own = [
            "-x509",
            "-days",
            "2",
            "-subj",
            &subject,
            "-keyout",
            text(&key),
            "-out",
            text(&certificate),
        ];
        run("openssl", "openssl", &[&NEW_KEY[..], &own].concat());
        Self { directory }
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// A certificate for `names`, as openssl writes them: `DNS:host,IP:127.0.0.1`.
    pub fn sign(&self, file: &str, names: &str) -> Signed {
        let at = |end: &str| self.directory.path().join(format!("{file}.{end}"));
        let (request, extensions) = (at("csr"), at("ext"));
        let signed = Signed {
            certificate: at("crt"),
            key: at("key"),
        };
        let subject = format!("/CN={file}");
        let own = [
            "-subj",
            &subject,
            "-keyout",
            text(&signed.key),
            "-out",
            text(&request),
        ];
        run("openssl", "openssl", &[&NEW_KEY[..], &own].concat());
        fs::write(&extensions, format!("subjectAltName={names}\n")).unwrap();
        let ca_key = self.directory.path().join("ca.key");
        let arguments = [
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            text(&request),
            "-extfile",
            text(&extensions),
        ];
        let more = [
            "-CA",
            text(&self.certificate()),
            "-CAkey",
            text(&ca_key),
            "-CAcreateserial",
        ]
        .map(str::to_owned);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        run(
            "openssl",
            "openssl",
            &[&arguments[..], &more, &["-out", text(&signed.certificate)]].concat(),
        );
        signed
    }

    /// What a server with a certificate for loopback needs, which asks clients for certificates of `clients`.
    pub fn server(&self, names: &str, clients: Option<&Self>) -> ServerConfig {
        let signed = self.sign("server", names);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_file(authority.certificate()).unwrap())
                    .unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_file(&signed.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&signed.key).unwrap();
        builder.with_single_cert(chain, key).unwrap()
    }
}

/// Both files' contents in one.
pub fn joined(one: &Path, two: &Path) -> Vec<u8> {
    [fs::read(one).unwrap(), fs::read(two).unwrap()].concat()
}
