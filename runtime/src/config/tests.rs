//! Tests of the configuration file.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/bulkhead/config.toml"))
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("it should have been refused").to_string()
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    assert_eq!(parse(DEFAULT_TEXT).unwrap(), Config::default());
}

#[test]
fn the_printed_defaults_name_every_key() {
    let shown: toml::Table = toml::from_str(DEFAULT_TEXT).unwrap();
    let declared = toml::Table::try_from(Config::default()).unwrap();
    for (name, value) in declared.iter().filter(|(name, _)| *name != "handlers") {
        assert!(shown.contains_key(name), "{name} is missing in default.toml");
        for key in value.as_table().into_iter().flat_map(toml::Table::keys) {
            assert!(
                shown[name].get(key).is_some(),
                "{name}.{key} is missing in default.toml"
            );
        }
    }
    for key in known_keys()["handlers"][unknown_key::ANY]
        .as_table()
        .unwrap()
        .keys()
    {
        assert!(
            DEFAULT_TEXT.contains(&format!("# {key} = ")),
            "handlers.NAME.{key} is missing in default.toml"
        );
    }
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn a_misspelt_key_is_refused_with_the_one_that_was_meant() {
    let message = refusal("root = \"/a\"\n\n[vm]\nmemroy_mib = 1\n");
    assert!(message.contains("line 4"), "{message}");
    assert!(message.contains("`vm.memroy_mib`"), "{message}");
    assert!(message.contains("did you mean `vm.memory_mib`?"), "{message}");
}

#[test]
fn a_key_in_the_wrong_table_is_told_its_own() {
    let message = refusal("kernel = \"/boot/vmlinux\"\n");
    assert!(message.contains("belongs into the table [vm]"), "{message}");
}

#[test]
fn a_key_like_no_other_is_told_where_the_keys_are() {
    let message = refusal("[vm]\nturbo = true\n");
    assert!(message.contains("`vm.turbo`"), "{message}");
    assert!(message.contains("`bulkheadd config`"), "{message}");
}

#[test]
fn a_handler_may_have_any_name_but_not_any_key() {
    let config = parse("[handlers.big]\nmemory_mib = 1024\n").unwrap();
    assert_eq!(config.handlers["big"].memory_mib, Some(1024));
    let message = refusal("[handlers.big]\nmemory_mb = 1024\n");
    assert!(
        message.contains("did you mean `handlers.big.memory_mib`?"),
        "{message}"
    );
    assert!(refusal("[handlers.Big]\n").contains("handlers.Big"));
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_line() {
    let message = refusal("[vm]\nvcpus = \"two\"\n");
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn values_that_cannot_work_are_refused_by_key() {
    for (text, key) in [
        ("root = \"var/lib\"", "`root`"),
        ("state = \"/var/lib/bulkhead\"", "`state`"),
        ("[vm]\nvcpus = 0", "`vm.vcpus`"),
        ("[vm]\nvcpus = 33", "`vm.vcpus`"),
        ("[vm]\nmemory_mib = 16", "`vm.memory_mib`"),
        ("[vm]\nmax_memory_mib = 100", "`vm.max_memory_mib`"),
        ("[vm]\nscratch_mib = 1", "`vm.scratch_mib`"),
        ("[vm]\nconsole_bytes = 1", "`vm.console_bytes`"),
        ("[vm]\ncgroup_parent = \"/a/../b\"", "`vm.cgroup_parent`"),
        ("[streaming]\naddress = \"0.0.0.0\"", "`streaming.address`"),
        ("[streaming]\ntls_key = \"key.pem\"", "`streaming.tls_key`"),
        ("[streaming]\ntls_certificate = \"/c.pem\"", "`streaming.tls_key`"),
        ("[timeouts]\nboot_seconds = 0", "`timeouts.boot_seconds`"),
        ("[log]\nlevel = \"info=what=ever\"", "`log.level`"),
        ("[handlers.x]\nvcpus = 99", "`handlers.x.vcpus`"),
    ] {
        let message = refusal(text);
        assert!(message.contains(key), "{text}: {message}");
    }
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
    let missing = Path::new("/nonexistent/bulkhead.toml");
    assert!(matches!(
        Config::load(Some(missing)),
        Err(ConfigError::Missing(_))
    ));
}
