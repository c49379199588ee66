//! Tests of what a container's first process is.

use bulkhead_proto::cri::{Int64Value, KeyValue, LinuxContainerConfig};

use super::*;

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn image() -> ContainerDefaults {
    ContainerDefaults {
        user_spec: "www-data:1004".into(),
        env: strings(&["PATH=/image", "A=image", "B=image"]),
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["default"]),
        working_dir: "/srv".into(),
        ..ContainerDefaults::default()
    }
}

fn with_security(change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
    let mut security = LinuxContainerSecurityContext::default();
    change(&mut security);
    ContainerConfig {
        linux: Some(LinuxContainerConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..ContainerConfig::default()
    }
}

fn user_of(config: &ContainerConfig) -> User {
    process(config, &image(), "h").unwrap().user.unwrap()
}

#[test]
fn command_and_args_go_over_the_images() {
    let args = |command: &[&str], args: &[&str]| {
        let config = ContainerConfig {
            command: strings(command),
            args: strings(args),
            ..ContainerConfig::default()
        };
        process(&config, &image(), "h").unwrap().args
    };
    assert_eq!(args(&[], &[]), ["/entry", "default"]);
    assert_eq!(args(&[], &["x"]), ["/entry", "x"]);
    assert_eq!(args(&["/bin/sh"], &[]), ["/bin/sh"]);
    assert_eq!(args(&["/bin/sh"], &["-c", "x"]), ["/bin/sh", "-c", "x"]);
}

#[test]
fn nothing_to_start_is_refused() {
    let message = process(&ContainerConfig::default(), &ContainerDefaults::default(), "h")
        .unwrap_err()
        .to_string();
    assert!(message.contains("config.command"), "{message}");
}

#[test]
fn the_requests_variables_go_over_the_images() {
    let config = ContainerConfig {
        envs: vec![
            KeyValue {
                key: "A".into(),
                value: b"request".to_vec(),
            },
            KeyValue {
                key: "BIN".into(),
                value: vec![0xff, b'='],
            },
        ],
        ..ContainerConfig::default()
    };
    let env = process(&config, &image(), "web-0").unwrap().env;
    let expected: [&[u8]; 5] = [
        b"HOSTNAME=web-0",
        b"PATH=/image",
        b"B=image",
        b"A=request",
        b"BIN=\xff=",
    ];
    assert_eq!(env, expected);
    let bare = process(
        &ContainerConfig {
            command: strings(&["x"]),
            tty: true,
            ..ContainerConfig::default()
        },
        &ContainerDefaults::default(),
        "h",
    )
    .unwrap();
    assert_eq!(bare.env, [DEFAULT_PATH, b"HOSTNAME=h", b"TERM=xterm"]);
    assert!(bare.terminal && bare.stdout && !bare.stderr);
}

#[test]
fn variables_that_cannot_be_are_refused() {
    for (key, value) in [
        ("", "x"),
        ("A=B", "x"),
        ("A", "a\0b"),
        ("A", &*"x".repeat(128 * 1024)),
    ] {
        let config = ContainerConfig {
            envs: vec![KeyValue {
                key: key.into(),
                value: value.into(),
            }],
            ..ContainerConfig::default()
        };
        assert!(
            process(&config, &image(), "h")
                .unwrap_err()
                .to_string()
                .contains("config.envs"),
            "{key:?}"
        );
    }
}

#[test]
fn the_working_directory_is_the_requests_or_the_images_or_the_root() {
    let cwd = |request: &str, image_cwd: &str| {
        let config = ContainerConfig {
            working_dir: request.into(),
            ..ContainerConfig::default()
        };
        process(
            &config,
            &ContainerDefaults {
                working_dir: image_cwd.into(),
                ..image()
            },
            "h",
        )
        .map(|spec| spec.cwd)
    };
    assert_eq!(cwd("/a", "/b").unwrap(), "/a");
    assert_eq!(cwd("", "/b").unwrap(), "/b");
    assert_eq!(cwd("", "").unwrap(), "/");
    assert!(cwd("a", "").is_err());
}

#[test]
fn the_user_is_the_requests_or_the_images() {
    let user = user_of(&ContainerConfig::default());
    assert_eq!(
        (user.username.as_str(), user.groupname.as_str(), user.gid),
        ("www-data", "1004", None)
    );

    let user = user_of(&with_security(|s| {
        s.run_as_user = Some(Int64Value { value: 1001 });
    }));
    assert_eq!(
        (user.uid, user.username.as_str(), user.groupname.as_str()),
        (Some(1001), "", "")
    );

    let user = user_of(&with_security(|s| s.run_as_username = "nobody".into()));
    assert_eq!(
        (user.uid, user.username.as_str(), user.groupname.as_str()),
        (None, "nobody", "")
    );

    let user = user_of(&with_security(|s| {
        s.run_as_user = Some(Int64Value { value: 1001 });
        s.run_as_group = Some(Int64Value { value: 1002 });
        s.supplemental_groups = vec![1234, 5678];
        s.set_supplemental_groups_policy(SupplementalGroupsPolicy::Strict);
    }));
    assert_eq!(
        (user.gid, user.supplemental_groups),
        (Some(1002), vec![1234, 5678])
    );
    assert!(!user.merge_image_groups);
    assert!(user_of(&ContainerConfig::default()).merge_image_groups);
}

#[test]
fn users_that_cannot_be_are_refused_by_field() {
    for (config, field) in [
        (
            with_security(|s| s.run_as_group = Some(Int64Value { value: 1 })),
            "run_as_group",
        ),
        (
            with_security(|s| s.run_as_user = Some(Int64Value { value: -1 })),
            "run_as_user",
        ),
        (
            with_security(|s| s.run_as_user = Some(Int64Value { value: 1 << 32 })),
            "run_as_user",
        ),
        (
            with_security(|s| s.run_as_username = "a\nb".into()),
            "run_as_username",
        ),
        (
            with_security(|s| s.supplemental_groups = vec![-5]),
            "supplemental_groups",
        ),
        (
            with_security(|s| s.supplemental_groups_policy = 7),
            "supplemental_groups_policy",
        ),
    ] {
        let message = process(&config, &image(), "h").unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
}
