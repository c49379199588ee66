//! `hosts.toml`, read key by key so that whatever is wrong with it is told with its line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::duration::parse_duration;
use super::{ClientCertificate, HostOptions, HostsError};

/// Keys of `[host."…"]`, and of the top level, where they are about `server`.
const OPTION_KEYS: [&str; 7] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
];

/// What a `hosts.toml` says.
#[derive(Debug, Default)]
pub(super) struct HostsFile {
    /// The hosts to ask before the server, in the order they stand in.
    pub(super) hosts: Vec<(Url, HostOptions)>,
    /// What stands in the registry's own place; nothing means the registry itself.
    pub(super) server: Option<Url>,
    /// How the server, or the registry itself, is spoken to.
    pub(super) server_options: HostOptions,
}

/// Reads `text`, the content of the file at `path`.
pub(super) fn parse(text: &str, path: &Path) -> Result<HostsFile, HostsError> {
    let reader = Reader { text, path };
    let document = DeTable::parse(text)
        .map_err(|error| reader.refuse(error.span().map(|span| span.start), "", error.message()))?;
    let mut hosts = Vec::new();
    let mut server = None;
    for (key, value) in document.get_ref() {
        let at = key.span().start;
        match key.get_ref().as_ref() {
            "host" => hosts = reader.hosts(value)?,
            "server" => {
                let url = reader.string(value, "server")?;
                // Written but empty is as if it were not there.
                if !url.is_empty() {
                    server = Some(reader.url(at, "server", url)?);
                }
            }
            name if OPTION_KEYS.contains(&name) => {}
            name => return Err(reader.unknown(at, name, &["server", "host"])),
        }
    }
    Ok(HostsFile {
        hosts,
        server,
        server_options: reader.options(document.get_ref(), "")?,
    })
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Reader<'_> {
    fn hosts(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(Url, HostOptions)>, HostsError> {
        let mut found = Vec::new();
        for (key, value) in self.table(value, "host")? {
            let (at, name) = (key.span().start, format!("host.{:?}", key.get_ref().as_ref()));
            let url = self.url(at, &name, key.get_ref())?;
            let table = self.table(value, &name)?;
            let prefix = format!("{name}.");
            for key in table.keys() {
                if !OPTION_KEYS.contains(&key.get_ref().as_ref()) {
                    let name = format!("{prefix}{}", key.get_ref());
                    return Err(self.unknown(key.span().start, &name, &[]));
                }
            }
            found.push((at, url, self.options(table, &prefix)?));
        }
        // A table's keys come sorted by name; hosts are tried in the order they are written in.
        found.sort_by_key(|(at, ..)| *at);
        Ok(found
            .into_iter()
            .map(|(_, url, options)| (url, options))
            .collect())
    }

    fn options(&self, table: &DeTable<'_>, prefix: &str) -> Result<HostOptions, HostsError> {
        let mut options = HostOptions::default();
        for (key, value) in table {
            let key = key.get_ref().as_ref();
            let name = format!("{prefix}{key}");
            match key {
                "capabilities" => self.capabilities(value, &name, &mut options)?,
                "ca" => {
                    let paths = self.strings(value, &name)?;
                    options.ca = paths.into_iter().map(|path| self.beside(path)).collect();
                }
                "client" => options.client = self.client(value, &name)?,
                "skip_verify" => options.skip_verify = self.boolean(value, &name)?,
                "override_path" => options.override_path = self.boolean(value, &name)?,
                "header" => options.headers = self.headers(value, &name)?,
                "dial_timeout" => {
                    let text = self.string(value, &name)?;
                    // Written but empty is as if it were not there.
                    if !text.is_empty() {
                        options.dial_timeout = Some(self.dial_timeout(value, &name, text)?);
                    }
                }
                _ => {}
            }
        }
        Ok(options)
    }

    fn capabilities(
        &self,
        value: &Spanned<DeValue<'_>>,
        name: &str,
        options: &mut HostOptions,
    ) -> Result<(), HostsError> {
        let listed = self.strings(value, name)?;
        // An empty list allows everything, as no list does.
        if listed.is_empty() {
            return Ok(());
        }
        (options.pull, options.resolve) = (false, false);
        for capability in listed {
            match capability.to_ascii_lowercase().as_str() {
                "pull" => options.pull = true,
                "resolve" => options.resolve = true,
                // Nothing is pushed or referred to from here.
                "push" | "referrers" => {}
                _ => {
                    let reason =
                        format!("is {capability:?}, but must be of \"pull\", \"resolve\" and \"push\"");
                    return Err(self.refuse(Some(value.span().start), name, &reason));
                }
            }
        }
        Ok(())
    }

    /// One path, a list of paths, or a list of pairs: certificate, and key or "" where both are in one file.
    fn client(&self, value: &Spanned<DeValue<'_>>, name: &str) -> Result<Vec<ClientCertificate>, HostsError> {
        let whole = |path: &str| ClientCertificate {
            certificate: self.beside(path),
            key: None,
        };
        let DeValue::Array(list) = value.get_ref() else {
            return Ok(vec![whole(self.string(value, name)?)]);
        };
        let certificate = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
            DeValue::Array(_) => match self.strings(item, name)?.as_slice() {
                [certificate, key] => Ok(ClientCertificate {
                    certificate: self.beside(certificate),
                    key: (!key.is_empty()).then(|| self.beside(key)),
                }),
                other => {
                    let reason = format!(
                        "has a list of {} paths where a pair of certificate and key belongs",
                        other.len()
                    );
                    Err(self.refuse(Some(item.span().start), name, &reason))
                }
            },
            _ => Ok(whole(self.string(item, name)?)),
        };
        list.iter().map(certificate).collect()
    }

    fn headers(&self, value: &Spanned<DeValue<'_>>, name: &str) -> Result<HeaderMap, HostsError> {
        let mut headers = HeaderMap::new();
        for (key, value) in self.table(value, name)? {
            let at = key.span().start;
            let name = format!("{name}.{}", key.get_ref());
            let header = HeaderName::from_bytes(key.get_ref().as_bytes())
                .map_err(|_| self.refuse(Some(at), &name, "is not the name of an HTTP header"))?;
            for text in self.strings(value, &name)? {
                let mut content = HeaderValue::from_str(text)
                    .map_err(|_| self.refuse(Some(at), &name, "has a value that no HTTP header can have"))?;
                content.set_sensitive(true);
                headers.append(header.clone(), content);
            }
        }
        Ok(headers)
    }

    fn dial_timeout(
        &self,
        value: &Spanned<DeValue<'_>>,
        name: &str,
        text: &str,
    ) -> Result<Duration, HostsError> {
        parse_duration(text).ok_or_else(|| {
            let reason = format!(
                "is {text:?}, but must be a time longer than nothing, such as \"500ms\" or \"1m30s\""
            );
            self.refuse(Some(value.span().start), name, &reason)
        })
    }

    fn url(&self, at: usize, name: &str, text: &str) -> Result<Url, HostsError> {
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let refuse = |reason: &str| self.refuse(Some(at), name, reason);
        let url = Url::parse(&full).map_err(|error| {
            refuse(&format!(
                "is no URL ({error}); write it as https://host:port/path"
            ))
        })?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refuse("must be a URL of http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "has a user in its URL; give credentials with image pull secrets or images.docker_config",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("has something behind its path; end it there"));
        }
        Ok(url)
    }

    /// A path of the file, from the folder that the file is in.
    fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn table<'v, 'i>(
        &self,
        value: &'v Spanned<DeValue<'i>>,
        name: &str,
    ) -> Result<&'v DeTable<'i>, HostsError> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.mistyped(value, name, "a table"))
    }

    fn string<'v>(&self, value: &'v Spanned<DeValue<'_>>, name: &str) -> Result<&'v str, HostsError> {
        let text = value.get_ref().as_str();
        text.ok_or_else(|| self.mistyped(value, name, "a string"))
    }

    fn boolean(&self, value: &Spanned<DeValue<'_>>, name: &str) -> Result<bool, HostsError> {
        let boolean = value.get_ref().as_bool();
        boolean.ok_or_else(|| self.mistyped(value, name, "true or false"))
    }

    /// A string, or a list of strings.
    fn strings<'v>(&self, value: &'v Spanned<DeValue<'_>>, name: &str) -> Result<Vec<&'v str>, HostsError> {
        match value.get_ref() {
            DeValue::Array(list) => list.iter().map(|item| self.string(item, name)).collect(),
            DeValue::String(text) => Ok(vec![text]),
            _ => Err(self.mistyped(value, name, "a string or a list of strings")),
        }
    }

    fn mistyped(&self, value: &Spanned<DeValue<'_>>, name: &str, wanted: &str) -> HostsError {
        let reason = format!("must be {wanted}, not of type {}", value.get_ref().type_str());
        self.refuse(Some(value.span().start), name, &reason)
    }

    fn unknown(&self, at: usize, name: &str, more: &[&str]) -> HostsError {
        let known = [more, &OPTION_KEYS].concat().join(", ");
        self.refuse(
            Some(at),
            name,
            &format!("is not known; the keys that may stand there are {known}"),
        )
    }

    fn refuse(&self, at: Option<usize>, key: &str, reason: &str) -> HostsError {
        let before = at.and_then(|at| self.text.get(..at)).unwrap_or_default();
        HostsError {
            path: self.path.to_owned(),
            line: at.map(|_| before.matches('\n').count() + 1),
            key: key.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> HostsFile {
        parse(text, Path::new("/certs.d/x/hosts.toml")).unwrap()
    }

    fn refusal(text: &str) -> String {
        let error = parse(text, Path::new("/certs.d/x/hosts.toml")).unwrap_err();
        error.to_string()
    }

    #[test]
    fn every_key_is_read_in_every_form() {
        let file = parsed(
            r#"
            server = "https://upstream.example"
            skip_verify = true
            ca = "own.crt"

            [host."https://z.example/team"]
              capabilities = ["pull"]
              ca = ["/etc/one.pem", "two.pem"]
              client = [["c.cert", "c.key"], ["d.pem", ""]]
              dial_timeout = "1.5s"
              [host."https://z.example/team".header]
                x-one = "1"
                X-Two = ["2", "3"]

            [host."a.example:5000"]
              capabilities = ["Pull", "resolve", "push"]
              client = "e.pem"
              override_path = true

            [host."http://m.example"]
              client = ["f.pem", "g.pem"]
            "#,
        );
        let urls: Vec<_> = file.hosts.iter().map(|(url, _)| url.as_str()).collect();
        assert_eq!(
            urls,
            [
                "https://z.example/team",
                "https://a.example:5000/",
                "http://m.example/"
            ]
        );
        assert_eq!(file.server.unwrap().as_str(), "https://upstream.example/");
        assert!(file.server_options.skip_verify && file.server_options.resolve);
        assert_eq!(file.server_options.ca, [Path::new("/certs.d/x/own.crt")]);

        let (z, a, m) = (&file.hosts[0].1, &file.hosts[1].1, &file.hosts[2].1);
        assert_eq!((z.pull, z.resolve), (true, false));
        assert_eq!(z.ca, [Path::new("/etc/one.pem"), Path::new("/certs.d/x/two.pem")]);
        let pair = |certificate: &str, key: Option<&str>| ClientCertificate {
            certificate: Path::new("/certs.d/x").join(certificate),
            key: key.map(|key| Path::new("/certs.d/x").join(key)),
        };
        assert_eq!(z.client, [pair("c.cert", Some("c.key")), pair("d.pem", None)]);
        assert_eq!(z.dial_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(z.headers.get_all("x-two").iter().count(), 2);
        assert!(
            !format!("{z:?}").contains("\"1\""),
            "headers may be secrets: {z:?}"
        );
        assert_eq!((a.pull, a.resolve, a.override_path), (true, true, true));
        assert_eq!(a.client, [pair("e.pem", None)]);
        assert_eq!(m.client, [pair("f.pem", None), pair("g.pem", None)]);
    }

    #[test]
    fn hosts_are_in_the_order_of_the_file_however_they_are_written() {
        let file = parsed("host = { 'https://b' = { }, 'https://a' = { skip_verify = true } }");
        let urls: Vec<_> = file.hosts.iter().map(|(url, _)| url.as_str()).collect();
        assert_eq!(urls, ["https://b/", "https://a/"]);
        assert!(parsed("").hosts.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_and_key() {
        for (text, words) in [
            ("\n\nserver = ", &["line 3"][..]),
            (
                "\nmirrors = 1",
                &["line 2", "mirrors is not known", "server, host"],
            ),
            (
                "[host.'https://m']\n\nskip_verfy = true",
                &[
                    "line 3",
                    "host.\"https://m\".skip_verfy is not known",
                    "skip_verify",
                ],
            ),
            (
                "[host.'https://m']\nserver = 'x'",
                &["line 2", "server is not known"],
            ),
            ("[host.'https://m'.host.'https://n']", &["host is not known"]),
            (
                "\nca = 7",
                &["line 2", "ca must be a string or a list", "integer"],
            ),
            ("ca = [\n7]", &["line 2", "ca must be a string"]),
            ("skip_verify = 'yes'", &["skip_verify must be true or false"]),
            ("host = []", &["host must be a table"]),
            ("client = [['a']]", &["list of 1 paths"]),
            ("capabilities = ['pul']", &["\"pul\"", "\"resolve\""]),
            ("dial_timeout = '5'", &["\"5\"", "1m30s"]),
            ("dial_timeout = '0s'", &["longer than nothing"]),
            (
                "header = { 'a b' = '' }",
                &["header.a b", "name of an HTTP header"],
            ),
            ("header = { x = \"a\\nb\" }", &["no HTTP header can have"]),
            ("[host.'ftp://m']", &["http:// or https://"]),
            ("[host.'https://u:p@m']", &["image pull secrets"]),
            ("[host.'https://m?x=1']", &["behind its path"]),
            ("server = 'https://'", &["server", "is no URL"]),
        ] {
            let message = refusal(text);
            for word in words.iter().chain(&["/certs.d/x/hosts.toml"]) {
                assert!(message.contains(word), "{word:?} is not in: {message}");
            }
        }
    }
}
