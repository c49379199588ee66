//! Compares the compiled CRI descriptor with the interface as data, row by row and in both directions.

use std::collections::BTreeSet;

use bulkhead_proto::cri::{AuthConfig, FILE_DESCRIPTOR_SET, PullImageRequest};
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    Value,
};

/// Number of `debug_redact` in `google.protobuf.FieldOptions`, newer than some libraries' copy of that message.
const DEBUG_REDACT: u32 = 16;

const FACTS: &str = include_str!("data/cri-facts.tsv");

#[test]
fn the_descriptor_has_every_row_of_the_interface_and_nothing_else() {
    let facts: BTreeSet<String> = FACTS.lines().skip(1).map(fact).collect();
    let compiled = describe(&DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the descriptor decodes"));
    let missing: Vec<_> = facts.difference(&compiled).collect();
    let added: Vec<_> = compiled.difference(&facts).collect();
    assert!(
        missing.is_empty() && added.is_empty(),
        "missing: {missing:#?}\nadded: {added:#?}"
    );
    assert_eq!(
        facts.len(),
        FACTS.lines().count() - 1,
        "two rows of the table say the same"
    );
}

#[test]
fn the_interface_has_the_size_that_is_documented() {
    let count = |kind: &str| {
        FACTS
            .lines()
            .filter(|row| row.split('\t').next() == Some(kind))
            .count()
    };
    assert_eq!(
        (count("rpc"), count("message"), count("field"), count("enum")),
        (43, 175, 478, 11)
    );
}

/// A row of the table without the columns that a descriptor cannot hold (since when, and what it was before).
fn fact(row: &str) -> String {
    let columns: Vec<&str> = row.split('\t').collect();
    match columns.as_slice() {
        ["file", _, _, package, ..] => join(&["file", package]),
        [columns @ .., _since, _before] => join(columns),
        _ => panic!("a row of the table has too few columns: {row:?}"),
    }
}

fn join(columns: &[&str]) -> String {
    columns.join("|")
}

fn describe(pool: &DescriptorPool) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for file in pool.files() {
        rows.insert(join(&["file", file.package_name()]));
    }
    for service in pool.services() {
        rows.insert(join(&[
            "service",
            service.name(),
            "",
            &service.methods().len().to_string(),
            "",
            "",
            "",
        ]));
        for method in service.methods() {
            let signature = format!("{} -> {}", method.input().name(), method.output().name());
            let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (false, true) => "server_streaming",
                _ => "client_streaming",
            };
            rows.insert(join(&[
                "rpc",
                service.name(),
                method.name(),
                "",
                &signature,
                kind,
                "",
            ]));
        }
    }
    for message in pool.all_messages().filter(|message| !message.is_map_entry()) {
        describe_message(&message, &mut rows);
    }
    for values in pool.all_enums() {
        describe_enum(&values, &mut rows);
    }
    rows
}

fn describe_message(message: &MessageDescriptor, rows: &mut BTreeSet<String>) {
    let name = local_name(message.full_name());
    rows.insert(join(&[
        "message",
        name,
        "",
        &message.fields().len().to_string(),
        "",
        "",
        "",
    ]));
    for field in message.fields() {
        let number = field.number().to_string();
        let label = match field.cardinality() {
            _ if field.is_map() => "map",
            Cardinality::Repeated => "repeated",
            _ if field.containing_oneof().is_some() => "optional",
            _ => "singular",
        };
        rows.insert(join(&[
            "field",
            name,
            field.name(),
            &number,
            &field_type(&field),
            label,
            flags(&field),
        ]));
    }
}

fn describe_enum(values: &EnumDescriptor, rows: &mut BTreeSet<String>) {
    let name = local_name(values.full_name());
    rows.insert(join(&[
        "enum",
        name,
        "",
        &values.values().len().to_string(),
        "",
        "",
        "",
    ]));
    for value in values.values() {
        rows.insert(join(&[
            "enumvalue",
            name,
            value.name(),
            &value.number().to_string(),
            "",
            "",
            "",
        ]));
    }
}

fn field_type(field: &FieldDescriptor) -> String {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            unreachable!("a map field is a message")
        };
        let of = |kind: Kind| format!("{kind:?}");
        return format!(
            "map<{},{}>",
            of(entry.map_entry_key_field().kind()),
            of(entry.map_entry_value_field().kind())
        );
    }
    match field.kind() {
        Kind::Message(message) => format!("message:{}", local_name(message.full_name())),
        Kind::Enum(values) => format!("enum:{}", local_name(values.full_name())),
        scalar => format!("{scalar:?}"),
    }
}

fn flags(field: &FieldDescriptor) -> &'static str {
    let options = field.options();
    let is_set = |name: &str| {
        options
            .get_field_by_name(name)
            .is_some_and(|value| matches!(value.as_ref(), Value::Bool(true)))
    };
    if is_set("deprecated") {
        "deprecated"
    } else if options.get_field_by_name("debug_redact").is_none() && has_unknown(&options, DEBUG_REDACT)
        || is_set("debug_redact")
    {
        "debug_redact"
    } else {
        ""
    }
}

fn has_unknown(message: &DynamicMessage, number: u32) -> bool {
    message.unknown_fields().any(|field| field.number() == number)
}

#[test]
fn a_printed_request_shows_no_secret() {
    let auth = AuthConfig {
        username: "somebody".to_owned(),
        password: "s3cret".to_owned(),
        auth: "s3cret".to_owned(),
        server_address: "registry.example".to_owned(),
        identity_token: "s3cret".to_owned(),
        registry_token: "s3cret".to_owned(),
    };
    let request = PullImageRequest {
        auth: Some(auth),
        ..Default::default()
    };
    let printed = format!("{request:?}");
    assert!(
        printed.contains("somebody") && !printed.contains("s3cret"),
        "{printed}"
    );
}

fn local_name(full_name: &str) -> &str {
    full_name.strip_prefix("runtime.v1.").unwrap_or(full_name)
}
