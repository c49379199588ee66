//! Tests of which hosts a registry is reached by.

use super::*;

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn of(&self, registry: &str) -> Vec<Endpoint> {
        endpoints(self.0.path(), registry, registry.starts_with("localhost")).unwrap()
    }

    /// Addresses, with the namespace behind those that are told one.
    fn bases(&self, registry: &str) -> Vec<String> {
        let text = |endpoint: Endpoint| match endpoint.namespace {
            Some(namespace) => format!("{} ns={namespace}", endpoint.base),
            None => endpoint.base,
        };
        self.of(registry).into_iter().map(text).collect()
    }
}

#[test]
fn without_a_folder_the_registry_itself_is_asked() {
    let directory = Directory::new();
    assert_eq!(directory.bases("quay.io"), ["https://quay.io/v2"]);
    assert_eq!(directory.bases("docker.io"), ["https://registry-1.docker.io/v2"]);
    assert_eq!(directory.bases("localhost:5000"), ["http://localhost:5000/v2"]);
    for absent in [Path::new("/nonexistent/certs.d"), Path::new("")] {
        let found = endpoints(absent, "quay.io", false).unwrap();
        assert_eq!((found[0].host.as_str(), found.len()), ("quay.io", 1));
    }
}

#[test]
fn the_folder_is_found_by_its_names_in_their_order() {
    let server = |name: &str| format!("server = 'https://{name}'");
    let mut directory = Directory::new()
        .file("_default/hosts.toml", &server("default"))
        .file("r.example/hosts.toml", &server("bare"));
    assert_eq!(directory.bases("r.example"), ["https://bare/v2 ns=r.example"]);
    // Another port is another registry.
    assert_eq!(
        directory.bases("r.example:5000"),
        ["https://default/v2 ns=r.example:5000"]
    );
    directory = directory.file("r.example:5000/hosts.toml", &server("colon"));
    assert_eq!(
        directory.bases("r.example:5000"),
        ["https://colon/v2 ns=r.example:5000"]
    );
    directory = directory.file("r.example_5000_/hosts.toml", &server("underscore"));
    assert_eq!(
        directory.bases("r.example:5000"),
        ["https://underscore/v2 ns=r.example:5000"]
    );
    directory = directory.file("[::1]_5000_/hosts.toml", &server("six"));
    assert_eq!(directory.bases("[::1]:5000"), ["https://six/v2 ns=[::1]:5000"]);
    assert_eq!(directory.bases("[::1]"), ["https://default/v2 ns=[::1]"]);
}

#[test]
fn mirrors_come_first_and_are_told_whose_content_is_wanted() {
    let directory = Directory::new().file(
        "docker.io/hosts.toml",
        "server = 'https://docker.io'\n\
         [host.'https://m.example/team/']\n[host.'https://n.example/v2']\n\
         [host.'http://o.example:81/x/y']\noverride_path = true\n[host.'https://registry-1.docker.io']",
    );
    assert_eq!(
        directory.bases("docker.io"),
        [
            "https://m.example/team/v2 ns=docker.io",
            "https://n.example/v2 ns=docker.io",
            "http://o.example:81/x/y ns=docker.io",
            "https://registry-1.docker.io/v2",
            "https://registry-1.docker.io/v2",
        ]
    );
    let directory = Directory::new().file("r.example:443/hosts.toml", "[host.'https://R.example:443']");
    assert_eq!(
        directory.bases("r.example:443"),
        ["https://r.example/v2", "https://r.example:443/v2"]
    );
}

#[test]
fn tls_settings_at_an_http_address_try_tls_first() {
    let directory = Directory::new().file(
        "x/hosts.toml",
        "[host.'http://a:5000']\nskip_verify = true\n[host.'http://b']\nskip_verify = true\n[host.'http://c:5000']",
    );
    assert_eq!(
        directory.bases("x"),
        [
            "https://a:5000/v2 ns=x",
            "http://a:5000/v2 ns=x",
            "http://b/v2 ns=x",
            "http://c:5000/v2 ns=x",
            "https://x/v2",
        ]
    );
}

#[test]
fn a_folder_without_a_file_may_have_certificates() {
    let directory = Directory::new()
        .file("r.example/ca.crt", "")
        .file("r.example/me.cert", "")
        .file("r.example/me.key", "")
        .file("r.example/whole.cert", "")
        .file("r.example/README", "")
        .file("r.example/hosts.toml", "");
    let found = directory.of("r.example");
    let at = |name: &str| directory.0.path().join("r.example").join(name);
    let client = |certificate: &str, key: Option<&str>| ClientCertificate {
        certificate: at(certificate),
        key: key.map(at),
    };
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].options.ca, [at("ca.crt")]);
    assert_eq!(
        found[0].options.client,
        [client("me.cert", Some("me.key")), client("whole.cert", None)]
    );
    let lonely = Directory::new().file("r.example/me.key", "");
    let error = endpoints(lonely.0.path(), "r.example", false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("me.key") && error.contains(".cert"), "{error}");
    // With a file, the certificates beside it count only where the file names them.
    let with_file = Directory::new()
        .file("r.example/ca.crt", "")
        .file("r.example/hosts.toml", "skip_verify = true");
    assert!(with_file.of("r.example")[0].options.ca.is_empty());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = Directory::new().file("r.example/hosts.toml/x", "");
    let error = endpoints(directory.0.path(), "r.example", false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("r.example/hosts.toml") && error.contains("cannot be read"),
        "{error}"
    );
    assert_eq!(
        file_of(Path::new("/c"), "quay.io"),
        Path::new("/c/quay.io/hosts.toml")
    );
}
