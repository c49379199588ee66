//! Tests of running the plugins of a network, with plugins that behave and others.

use std::path::PathBuf;

use super::*;
use crate::network::cni::fake::{Call, FakePlugins};

fn list(source: Value) -> NetworkList {
    let Value::Object(source) = source else {
        panic!("not an object");
    };
    NetworkList::parse(source, Path::new("10.conflist")).unwrap()
}

fn chain(version: &str) -> NetworkList {
    list(json!({
        "name": "net", "cniVersion": version,
        "plugins": [
            {"type": "main", "mtu": 1400, "cni.dev/x": 1, "capabilities": {"ipRanges": true}},
            {"type": "ports", "capabilities": {"portMappings": true, "mac": false, "other": true}},
            {"type": "last"},
        ],
    }))
}

fn entry(list: &NetworkList) -> Entry {
    let Value::Object(capabilities) = json!({
        "portMappings": [{"hostPort": 80}], "mac": "02:00:00:00:00:01", "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
    }) else {
        panic!("not an object");
    };
    Entry {
        pod_id: "pod1".to_owned(),
        pod_name: "default/web".to_owned(),
        interface: "eth0".to_owned(),
        namespace_path: PathBuf::from("/proc/self/ns/net"),
        arguments: "IgnoreUnknown=1;K8S_POD_NAME=web".to_owned(),
        capabilities,
        file: "10.conflist".into(),
        config: list.to_json(),
        result: None,
    }
}

fn result(tag: &str) -> Value {
    json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.7/24"}], "tag": tag})
}

fn plugins() -> FakePlugins {
    let plugins = FakePlugins::new();
    for name in ["main", "ports", "last"] {
        plugins.add_with_result(name, &result(name));
    }
    plugins
}

fn summaries(calls: &[Call]) -> Vec<String> {
    calls.iter().map(Call::summary).collect()
}

#[tokio::test]
async fn add_goes_down_the_chain_with_results_and_what_each_asks_for() {
    let (plugins, list) = (plugins(), chain("1.0.0"));
    let got = add(&plugins.runner(30), &list, &entry(&list)).await.unwrap();
    assert_eq!(got, result("last"));
    let calls = plugins.calls();
    assert_eq!(summaries(&calls), ["ADD main", "ADD ports", "ADD last"]);
    for call in &calls {
        assert_eq!(
            (
                call.container.as_str(),
                call.namespace.as_str(),
                call.interface.as_str()
            ),
            ("pod1", "/proc/self/ns/net", "eth0")
        );
        assert_eq!(call.arguments, "IgnoreUnknown=1;K8S_POD_NAME=web");
    }
    let ranges = json!([[{"subnet": "10.1.0.0/24"}]]);
    assert_eq!(
        calls[0].input,
        json!({"type": "main", "mtu": 1400, "name": "net", "cniVersion": "1.0.0", "runtimeConfig": {"ipRanges": ranges}})
    );
    assert_eq!(
        calls[1].input,
        json!({
            "type": "ports", "name": "net", "cniVersion": "1.0.0",
            "runtimeConfig": {"portMappings": [{"hostPort": 80}]}, "prevResult": result("main"),
        })
    );
    assert_eq!(
        calls[2].input,
        json!({"type": "last", "name": "net", "cniVersion": "1.0.0", "prevResult": result("ports")})
    );
}

#[tokio::test]
async fn del_goes_up_the_chain_with_the_last_result() {
    let plugins = plugins();
    for (version, previous) in [("0.3.1", None), ("0.4.0", Some(result("last")))] {
        let list = chain(version);
        let mut entry = entry(&list);
        entry.result = Some(result("last"));
        entry.namespace_path = "/nonexistent/ns".into();
        del(&plugins.runner(30), &list, &entry).await.unwrap();
        let calls = plugins.calls();
        assert_eq!(summaries(&calls), ["DEL last", "DEL ports", "DEL main"]);
        for call in calls {
            assert_eq!(call.input.get("prevResult"), previous.as_ref(), "{version}");
            assert_eq!(call.namespace, "", "a namespace that is gone is not named");
        }
    }
}

#[tokio::test]
async fn a_plugin_that_does_not_know_the_pod_has_nothing_to_delete_and_others_end_it() {
    let (plugins, list) = (plugins(), chain("1.0.0"));
    plugins.add(
        "last",
        r#"echo '{"code": 3, "msg": "never heard of it"}'; exit 1"#,
    );
    del(&plugins.runner(30), &list, &entry(&list)).await.unwrap();
    assert_eq!(plugins.calls().len(), 3);
    for (body, part) in [
        (
            r#"echo '{"code": 7, "msg": "bad"}'; exit 1"#,
            "error 7 (invalid network configuration): bad",
        ),
        ("echo garbage; exit 1", "exit status: 1, and printed: garbage"),
        ("sleep 100", "had not ended after 2 s"),
        ("exec yes", "more than 1048576 bytes"),
    ] {
        plugins.add("ports", body);
        let error = del(&plugins.runner(2), &list, &entry(&list))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("CNI network net: plugin ports at DEL: "),
            "{error}"
        );
        assert!(error.contains(part), "{error}");
        assert_eq!(summaries(&plugins.calls()), ["DEL last", "DEL ports"]);
    }
}

#[tokio::test]
async fn add_ends_at_the_first_plugin_that_misbehaves() {
    let (plugins, list) = (plugins(), chain("1.0.0"));
    for (body, part) in [
        (
            r#"echo '{"code": 100, "msg": "no", "details": "room"}'; exit 1"#,
            "error 100: no: room",
        ),
        ("echo '<html>'; exit 0", "printed no valid result: expected value"),
        ("exit 0", "there is none"),
        ("echo '[]'", "not an object"),
        (r#"echo '{"code": 4, "msg": "oops"}'"#, "it is an error, although"),
        (r#"echo '{"ips": [{"address": "nowhere"}]}'"#, "\"nowhere\""),
        ("sleep 100", "had not ended after 2 s"),
        ("exec yes", "more than 1048576 bytes"),
        ("exit 42", "exit status: 42, and printed nothing"),
    ] {
        plugins.add("ports", body);
        let error = add(&plugins.runner(2), &list, &entry(&list))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("CNI network net: plugin ports at ADD: "),
            "{error}"
        );
        assert!(error.contains(part), "{body}: {error}");
        assert_eq!(summaries(&plugins.calls()), ["ADD main", "ADD ports"]);
    }
    plugins.remove("ports");
    let error = add(&plugins.runner(2), &list, &entry(&list))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no such executable in /nonexistent, "), "{error}");
}

#[tokio::test]
async fn check_has_the_last_result_and_is_left_out_where_it_must_be() {
    let plugins = plugins();
    let run = async |version: &str, disable: bool| {
        let mut list = chain(version);
        list.disable_check = disable;
        let mut entry = entry(&list);
        entry.result = Some(result("last"));
        let outcome = check(&plugins.runner(30), &list, &entry).await;
        (outcome, plugins.calls())
    };
    let (outcome, calls) = run("0.4.0", false).await;
    outcome.unwrap();
    assert_eq!(summaries(&calls), ["CHECK main", "CHECK ports", "CHECK last"]);
    assert!(
        calls
            .iter()
            .all(|call| call.input["prevResult"] == result("last"))
    );
    assert!(run("0.3.1", false).await.1.is_empty());
    assert!(run("1.1.0", true).await.1.is_empty());
    plugins.add("ports", r#"echo '{"code": 103, "msg": "rule is gone"}'; exit 1"#);
    let (outcome, calls) = run("1.0.0", false).await;
    let error = outcome.unwrap_err().to_string();
    assert_eq!(
        error,
        "CNI network net: plugin ports at CHECK: error 103: rule is gone"
    );
    assert_eq!(calls.len(), 2);
}

#[tokio::test]
async fn gc_names_the_valid_attachments_and_goes_on_after_errors() {
    let plugins = plugins();
    plugins.add("main", "exit 1");
    let mut list = chain("1.1.0");
    let valid = [ValidAttachment {
        container_id: "pod1",
        interface: "eth0",
    }];
    let errors = gc(&plugins.runner(30), &list, &valid).await;
    assert_eq!(errors.len(), 1);
    let calls = plugins.calls();
    assert_eq!(summaries(&calls), ["GC main", "GC ports", "GC last"]);
    let named = json!([{"containerID": "pod1", "ifname": "eth0"}]);
    assert!(
        calls
            .iter()
            .all(|call| call.input["cni.dev/valid-attachments"] == named)
    );
    assert!(
        calls
            .iter()
            .all(|call| call.container.is_empty() && call.input.get("runtimeConfig").is_none())
    );
    list.disable_gc = true;
    assert!(gc(&plugins.runner(30), &list, &valid).await.is_empty());
    assert!(gc(&plugins.runner(30), &chain("1.0.0"), &valid).await.is_empty());
    assert!(plugins.calls().is_empty());
}

#[tokio::test]
async fn status_asks_plugins_of_the_newest_version_and_misses_executables_of_all() {
    let plugins = plugins();
    status(&plugins.runner(30), &chain("1.0.0")).await.unwrap();
    assert!(plugins.calls().is_empty());
    status(&plugins.runner(30), &chain("1.1.0")).await.unwrap();
    assert_eq!(
        summaries(&plugins.calls()),
        ["STATUS main", "STATUS ports", "STATUS last"]
    );
    plugins.add(
        "main",
        r#"echo '{"code": 50, "msg": "no more addresses"}'; exit 1"#,
    );
    let error = status(&plugins.runner(30), &chain("1.1.0"))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "CNI network net: plugin main at STATUS: error 50 (not available): no more addresses"
    );
    let with_ipam = list(json!({
        "name": "net", "cniVersion": "0.4.0", "plugins": [{"type": "main", "ipam": {"type": "host-local"}}],
    }));
    let error = status(&plugins.runner(30), &with_ipam)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("plugin host-local at STATUS: there is no such executable"),
        "{error}"
    );
}
