//! Tests of reading configurations.

use serde_json::json;

use super::*;

fn parse(source: Value) -> Result<NetworkList, String> {
    let Value::Object(source) = source else {
        panic!("not an object");
    };
    NetworkList::parse(source, Path::new("x.conflist"))
}

#[test]
fn the_first_valid_file_by_name_wins_and_one_plugin_is_a_list() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    assert!(
        load(directory.path())
            .unwrap_err()
            .contains("there is no CNI configuration")
    );
    write("00-notes.txt", "not looked at");
    write("05-broken.conflist", "{");
    write(
        "07-old.conf",
        r#"{"cniVersion": "0.2.0", "name": "old", "type": "bridge"}"#,
    );
    let reason = load(directory.path()).unwrap_err();
    for part in [
        "05-broken.conflist",
        "is not JSON",
        "07-old.conf",
        "version 0.2.0",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    write(
        "20-late.conflist",
        r#"{"cniVersion": "1.0.0", "name": "late", "plugins": [{"type": "a"}]}"#,
    );
    assert_eq!(load(directory.path()).unwrap().name, "late");
    write(
        "10-single.conf",
        r#"{"cniVersion": "0.4.0", "name": "single", "type": "bridge", "mtu": 1400}"#,
    );
    let list = load(directory.path()).unwrap();
    assert_eq!(
        (list.name.as_str(), list.version),
        ("single", SpecVersion::V0_4_0)
    );
    assert_eq!(list.plugins.len(), 1);
    assert_eq!(list.plugins[0].kind, "bridge");
    assert_eq!(list.plugins[0].fields["mtu"], 1400);
}

#[test]
fn a_directory_that_is_not_there_is_named_with_the_remedy() {
    let reason = load(Path::new("/nonexistent/net.d")).unwrap_err();
    assert!(reason.contains("/nonexistent/net.d does not exist"), "{reason}");
    assert!(reason.contains("`network.conf_dir`"), "{reason}");
}

#[test]
fn the_highest_common_version_is_taken() {
    let of = |version: Value, versions: Value| {
        parse(
            json!({"name": "n", "cniVersion": version, "cniVersions": versions, "plugins": [{"type": "a"}]}),
        )
        .map(|list| list.version.as_str())
    };
    assert_eq!(of(json!("0.3.1"), Value::Null), Ok("0.3.1"));
    assert_eq!(
        of(json!("0.3.1"), json!(["0.4.0", "1.1.0", "1.0.0"])),
        Ok("1.1.0")
    );
    assert_eq!(of(json!("9.0.0"), json!(["0.4.0", "2.0.0"])), Ok("0.4.0"));
    for (version, versions) in [
        (json!("1.2.0"), Value::Null),
        (Value::Null, Value::Null),
        (json!(1), Value::Null),
    ] {
        assert!(of(version, versions).is_err());
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (source, part) in [
        (json!({"cniVersion": "1.0.0", "plugins": [{"type": "a"}]}), "name"),
        (
            json!({"cniVersion": "1.0.0", "name": "-x", "plugins": [{"type": "a"}]}),
            "-x",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "a/b", "plugins": [{"type": "a"}]}),
            "a/b",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}),
            "plugins",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}),
            "type",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "../a"}]}),
            "../a",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [3]}),
            "object",
        ),
        (json!({"cniVersion": "1.0.0", "name": "n", "plugins": {}}), "list"),
        (json!({"cniVersion": "1.0.0", "name": "n"}), "neither"),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "loadOnlyInlinedPlugins": true}),
            "no `plugins`",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "disableCheck": 1, "plugins": []}),
            "disableCheck",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a", "capabilities": []}]}),
            "capabilities",
        ),
    ] {
        let fault = parse(source.clone()).unwrap_err();
        assert!(fault.contains(part), "{source}: {fault}");
    }
}

#[test]
fn plugins_of_the_networks_folder_are_appended_unless_it_says_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    fs::create_dir(directory.path().join("net")).unwrap();
    write("net/20.conf", r#"{"type": "late"}"#);
    write("net/10.conf", r#"{"type": "early"}"#);
    write("net/README", "not looked at");
    let kinds = || -> Vec<String> {
        let list = load(directory.path()).unwrap();
        list.plugins.into_iter().map(|plugin| plugin.kind).collect()
    };
    write(
        "1.conflist",
        r#"{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "main"}]}"#,
    );
    assert_eq!(kinds(), ["main", "early", "late"]);
    write("1.conflist", r#"{"cniVersion": "1.1.0", "name": "net"}"#);
    assert_eq!(kinds(), ["early", "late"]);
    write(
        "1.conflist",
        r#"{"cniVersion": "1.1.0", "name": "net", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "main"}]}"#,
    );
    assert_eq!(kinds(), ["main"]);
    write("net/30.conf", "garbage");
    write(
        "1.conflist",
        r#"{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "main"}]}"#,
    );
    assert!(load(directory.path()).unwrap_err().contains("30.conf"));
}

#[test]
fn what_is_kept_of_a_network_is_the_whole_of_it() {
    let list = parse(json!({
        "name": "n", "cniVersion": "0.4.0", "cniVersions": ["1.1.0"], "disableCheck": "true", "disableGC": true,
        "plugins": [{"type": "a", "capabilities": {"portMappings": true, "mac": false}, "x": [1]}, {"type": "b"}],
    }))
    .unwrap();
    assert!(list.disable_check && list.disable_gc);
    assert_eq!(
        list.plugins[0].capabilities.iter().collect::<Vec<_>>(),
        ["portMappings"]
    );
    assert_eq!(
        NetworkList::parse(list.to_json(), Path::new("x.conflist")).unwrap(),
        list
    );
}
