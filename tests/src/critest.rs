//! The real `critest`, the conformance suite of CRI, on a daemon.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::Value;

use crate::Daemon;

/// For each call. An emulated node is some twenty times slower than what critest's own deadlines are made for.
const CALL_TIMEOUT: &str = "600s";

/// What critest may take for what one test asks of it.
const SUITE_TIMEOUT: &str = "40m";

/// The state of a specification in critest's report that was run and met.
const PASSED: &str = "passed";

/// Runs all specifications of critest whose full text contains one of `areas`, each of which must pass, but for those whose text
/// contains one of `left_out`. Neither list may name what is not there.
#[track_caller]
pub fn critest(daemon: &Daemon, areas: &[&str], left_out: &[&str]) {
    let outcomes = run(daemon, areas, left_out);
    for text in areas.iter().chain(left_out) {
        assert!(
            outcomes.keys().any(|name| name.contains(text)),
            "critest has no specification named like {text:?}; it has {:#?}",
            outcomes.keys()
        );
    }
    let is_asked_for = |name: &str| {
        let named = |texts: &[&str]| texts.iter().any(|text| name.contains(text));
        named(areas) && !named(left_out)
    };
    let wanting: Vec<_> = outcomes
        .iter()
        .filter(|(name, outcome)| is_asked_for(name) && outcome.as_str() != PASSED)
        .collect();
    assert!(wanting.is_empty(), "critest was not passed: {wanting:#?}");
    let passed = outcomes.keys().filter(|name| is_asked_for(name)).count();
    println!("critest: {passed} specifications passed");
}

/// How each specification ended, by its full text. Those not asked for were skipped.
fn run(daemon: &Daemon, areas: &[&str], left_out: &[&str]) -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().expect("a directory for critest's report");
    let report = directory.path().join("report.json");
    let mut command = Command::new("critest");
    command
        .args(["-runtime-endpoint", daemon.endpoint()])
        .args(["-image-endpoint", daemon.endpoint()])
        .args(["-runtime-service-timeout", CALL_TIMEOUT])
        .args(["-image-service-timeout", CALL_TIMEOUT])
        .args(["--ginkgo.timeout", SUITE_TIMEOUT])
        .args(["--ginkgo.no-color", "--ginkgo.json-report"])
        .arg(&report);
    for area in areas {
        command.args(["--ginkgo.focus", &literally(area)]);
    }
    for text in left_out {
        command.args(["--ginkgo.skip", &literally(text)]);
    }
    let output = command
        .output()
        .expect("critest starts; it is in the payload's tools");
    let written = fs::read(&report)
        .unwrap_or_else(|error| panic!("critest wrote no report: {error}; it said {output:?}"));
    let suites: Value = serde_json::from_slice(&written).expect("critest's report is JSON");
    let reports = suites.pointer("/0/SpecReports").and_then(Value::as_array);
    let is_specification = |report: &&Value| text(report, "/LeafNodeType") == "It";
    reports
        .expect("a list of specifications")
        .iter()
        .filter(is_specification)
        .map(outcome)
        .collect()
}

/// A specification's full text, and its state with what critest has to say of it.
fn outcome(report: &Value) -> (String, String) {
    let above = report
        .pointer("/ContainerHierarchyTexts")
        .and_then(Value::as_array);
    let above = above.into_iter().flatten().filter_map(Value::as_str);
    let name: Vec<&str> = above.chain([text(report, "/LeafNodeText")]).collect();
    let (state, message) = (text(report, "/State"), text(report, "/Failure/Message"));
    let message = message.lines().next().unwrap_or_default();
    let outcome = if state == PASSED {
        state.to_owned()
    } else {
        format!("{state}: {message}")
    };
    (name.join(" "), outcome)
}

/// The text at a JSON pointer's path; empty, if there is none.
fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A regular expression for `text`.
fn literally(text: &str) -> String {
    let escaped = |letter: char| match letter {
        '.' | '[' | ']' | '(' | ')' | '|' | '*' | '+' | '?' | '^' | '$' | '{' | '}' | '\\' => {
            format!("\\{letter}")
        }
        other => other.to_string(),
    };
    text.chars().map(escaped).collect()
}
