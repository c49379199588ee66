//! A small OCI registry inside the test (OCI distribution specification, pull only), which can be made to misbehave.

mod image;
mod tar;

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

pub use self::{
    image::{Body, Image, Layer, digest_of},
    tar::{Archive, Header},
};

/// A registry on a loopback port of its own, over plain HTTP. It ends with the test's process.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    shelves: Arc<Mutex<Shelves>>,
}

#[derive(Debug, Default)]
struct Shelves {
    /// By `repository:reference`, the reference a tag or a digest; media type and body.
    manifests: HashMap<String, (String, Body)>,
    blobs: HashMap<String, Body>,
    requests: Vec<String>,
}

impl Registry {
    /// Starts serving.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shelves = Arc::new(Mutex::new(Shelves::default()));
        let served = Arc::clone(&shelves);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shelves = Arc::clone(&served);
                // A client that hangs up is none of the registry's business.
                thread::spawn(move || drop(serve(connection, &shelves)));
            }
        });
        Self { address, shelves }
    }

    /// Host and port as references name them.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Puts an image on the shelf and gives its reference, such as `localhost:4711/bad:latest`.
    pub fn push(&self, name: &str, image: &Image) -> String {
        let encoded = image.encode();
        let manifest = encoded.manifest;
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let mut shelves = self.lock();
        for reference in [tag.to_owned(), digest_of(&manifest)] {
            let place = format!("{repository}:{reference}");
            shelves
                .manifests
                .insert(place, (image::MANIFEST.into(), Body::Bytes(manifest.clone())));
        }
        shelves
            .blobs
            .insert(encoded.config_digest, Body::Bytes(encoded.config));
        for layer in &image.layers {
            shelves.blobs.insert(layer.digest.clone(), layer.body.clone());
        }
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Serves `body` where the manifest `reference` (a tag or a digest) of `repository` would be.
    pub fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, body: Body) {
        let place = format!("{repository}:{reference}");
        self.lock().manifests.insert(place, (media_type.into(), body));
    }

    /// Serves `body` where the blob `digest` would be.
    pub fn put_blob(&self, digest: &str, body: Body) {
        self.lock().blobs.insert(digest.into(), body);
    }

    /// Digest of the manifest under a name such as `good:latest`.
    pub fn manifest_digest(&self, name: &str) -> String {
        match self.lock().manifests.get(name) {
            Some((_, Body::Bytes(bytes))) => digest_of(bytes),
            other => panic!("no manifest {name}: {other:?}"),
        }
    }

    /// Every request so far, such as `GET /v2/good/manifests/latest`.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, one request.
fn serve(connection: TcpStream, shelves: &Mutex<Shelves>) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let found = {
        let mut shelves = shelves.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.requests.push(format!("{method} {path}"));
        find(&shelves, path)
    };
    let (media_type, body) = found.unwrap_or_else(|| ("application/json".into(), Body::Status(404)));
    answer(connection, method == "HEAD", &media_type, &body)
}

fn find(shelves: &Shelves, path: &str) -> Option<(String, Body)> {
    let path = path.split('?').next()?;
    let rest = path.strip_prefix("/v2/")?;
    if rest.is_empty() {
        return Some(("application/json".into(), Body::Bytes(b"{}".to_vec())));
    }
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        return shelves
            .manifests
            .get(&format!("{repository}:{reference}"))
            .cloned();
    }
    let (_, digest) = rest.split_once("/blobs/")?;
    let body = shelves.blobs.get(digest).cloned()?;
    Some(("application/octet-stream".into(), body))
}

fn answer(mut connection: TcpStream, head: bool, media_type: &str, body: &Body) -> io::Result<()> {
    let fixed = format!("Content-Type: {media_type}\r\nConnection: close\r\n");
    let whole = |bytes: &[u8]| {
        format!(
            "HTTP/1.1 200 OK\r\n{fixed}Content-Length: {}\r\n\r\n",
            bytes.len()
        )
    };
    match body {
        Body::Status(code) => {
            let error = r#"{"errors":[{"code":"UNKNOWN","message":"the test registry says no"}]}"#;
            let length = error.len();
            write!(
                connection,
                "HTTP/1.1 {code} No\r\n{fixed}Content-Length: {length}\r\n\r\n"
            )?;
            if !head {
                connection.write_all(error.as_bytes())?;
            }
        }
        Body::Bytes(bytes) => {
            connection.write_all(whole(bytes).as_bytes())?;
            if !head {
                connection.write_all(bytes)?;
            }
        }
        Body::Cut(bytes, after) => {
            connection.write_all(whole(bytes).as_bytes())?;
            if !head {
                connection.write_all(bytes.get(..*after).unwrap_or(bytes))?;
            }
        }
        Body::Stalled(bytes) => {
            // How much is to come is not said: a length other than the manifest's would be refused.
            let length = bytes.len();
            write!(
                connection,
                "HTTP/1.1 200 OK\r\n{fixed}Transfer-Encoding: chunked\r\n\r\n"
            )?;
            if !head {
                write!(connection, "{length:x}\r\n")?;
                connection.write_all(bytes)?;
                connection.write_all(b"\r\n")?;
                // Until the client hangs up.
                connection.read_to_end(&mut Vec::new())?;
            }
        }
        Body::Endless(bytes) => {
            write!(
                connection,
                "HTTP/1.1 200 OK\r\n{fixed}Transfer-Encoding: chunked\r\n\r\n"
            )?;
            if !head {
                loop {
                    write!(connection, "{:x}\r\n", bytes.len())?;
                    connection.write_all(bytes)?;
                    connection.write_all(b"\r\n")?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(registry: &Registry, path: &str) -> Vec<u8> {
        let mut connection = TcpStream::connect(registry.address).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        answer
    }

    #[test]
    fn it_serves_what_was_pushed_and_counts_requests() {
        let registry = Registry::start();
        let layer = Layer::gzip(&Archive::new().file("f", 0o644, b"x").finish());
        let reference = registry.push("some/name:tag", &Image::new(vec![layer.clone()]));
        assert_eq!(reference, format!("{}/some/name:tag", registry.host()));

        let manifest = get(&registry, "/v2/some/name/manifests/tag");
        assert!(
            manifest
                .windows(layer.digest.len())
                .any(|part| part == layer.digest.as_bytes())
        );
        let by_digest = format!(
            "/v2/some/name/manifests/{}",
            registry.manifest_digest("some/name:tag")
        );
        assert_eq!(get(&registry, &by_digest), manifest);
        assert!(get(&registry, "/v2/some/name/manifests/other").starts_with(b"HTTP/1.1 404"));
        let blob = get(&registry, &format!("/v2/some/name/blobs/{}", layer.digest));
        let Body::Bytes(bytes) = &layer.body else {
            panic!("a whole body")
        };
        assert!(blob.ends_with(bytes));
        assert_eq!(registry.requests().len(), 4);
    }
}
