//! Who processes are.

use bulkhead_proto::agent;

use crate::{
    guest::SharedGuest,
    host::{Host, container, shell, variables},
};

pub async fn users_are_resolved_in_the_image(guest: SharedGuest) {
    let host = Host::new(guest).await;
    for (user, expected) in [
        (agent::User::default(), (0, 0, vec![0])),
        (
            agent::User {
                username: "app".to_owned(),
                merge_image_groups: true,
                supplemental_groups: vec![5000],
                ..agent::User::default()
            },
            (1000, 1001, vec![44, 63, 1001, 5000]),
        ),
        (
            agent::User {
                uid: Some(1000),
                gid: Some(7),
                ..agent::User::default()
            },
            (1000, 7, vec![7]),
        ),
        (
            agent::User {
                username: "4242".to_owned(),
                groupname: "video".to_owned(),
                ..agent::User::default()
            },
            (4242, 44, vec![44]),
        ),
    ] {
        let mut request = container(
            "c1",
            shell("id -u; id -g; grep Groups: /proc/self/status; echo $HOME; : >/dev/stdout"),
        );
        request.process.as_mut().unwrap().user = Some(user.clone());
        let resolved = host.create(request).await.unwrap();
        let (uid, gid, groups) = expected;
        assert_eq!(
            (resolved.uid, resolved.gid, &resolved.groups),
            (uid, gid, &groups),
            "{user:?}"
        );
        let output = host.open_output("c1", "").await;
        host.start("c1").await.unwrap();
        let seen = host.finish("c1", "", output).await.ok();
        host.remove("c1").await.unwrap();
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[..2], [uid.to_string(), gid.to_string()], "{user:?}");
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        assert_eq!(
            lines[2].split_whitespace().skip(1).collect::<Vec<_>>(),
            groups,
            "{user:?}"
        );
        let home = match uid {
            0 => "/root",
            1000 => "/home/app",
            _ => "/",
        };
        assert_eq!(lines[3], home, "{user:?}");
    }
}

pub async fn credentials_are_those_asked_for(guest: SharedGuest) {
    let host = Host::new(guest).await;
    let script = "sed -n 's/:\\t/=/p' /proc/self/status; echo nofile=$(ulimit -Sn)/$(ulimit -Hn); \
        echo core=$(ulimit -c); echo oom=$(cat /proc/self/oom_score_adj); echo cwd=$(pwd); \
        echo umask=$(umask); echo args=\"$0 $*\"; echo env=\"$A|$B|$PATH\"";
    let mut request = container("c1", shell(script));
    let process = request.process.as_mut().unwrap();
    process
        .args
        .extend(["zero", "one", "two words"].map(str::to_owned));
    process
        .env
        .extend([b"A=1".to_vec(), b"B=x=y".to_vec(), b"A=2".to_vec()]);
    process.cwd = "/made/for/it".to_owned();
    process.oom_score_adj = Some(321);
    process.no_new_privileges = true;
    process.rlimits = vec![agent::Rlimit {
        name: "RLIMIT_NOFILE".to_owned(),
        soft: 77,
        hard: 88,
    }];
    process.user = Some(agent::User {
        uid: Some(1000),
        ..agent::User::default()
    });
    let net_bind = vec!["NET_BIND_SERVICE".to_owned()];
    process.capabilities = Some(agent::Capabilities {
        bounding: vec!["NET_BIND_SERVICE".to_owned(), "KILL".to_owned()],
        permitted: net_bind.clone(),
        effective: net_bind.clone(),
        inheritable: net_bind.clone(),
        ambient: net_bind,
    });
    let seen = host.run(request).await.ok();
    let seen = variables(&seen);
    // CAP_NET_BIND_SERVICE is 10, CAP_KILL 5 (capability.h).
    for (name, value) in [
        ("CapBnd", "0000000000000420"),
        ("CapPrm", "0000000000000400"),
        ("CapEff", "0000000000000400"),
        ("CapInh", "0000000000000400"),
        ("CapAmb", "0000000000000400"),
        ("NoNewPrivs", "1"),
        ("SigBlk", "0000000000000000"),
        ("nofile", "77/88"),
        ("oom", "321"),
        ("cwd", "/made/for/it"),
        ("umask", "0022"),
        ("args", "zero one two words"),
        ("env", "2|x=y|/bin"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}");
    }
    let plain = variables(&host.sh(script).await.ok());
    assert_eq!(plain["oom"], "0");
    assert!(plain["nofile"].starts_with("1024/"), "{plain:?}");
    let ignored = u64::from_str_radix(&plain["SigIgn"], 16).unwrap();
    assert_eq!(ignored & 1 << (13 - 1), 0, "SIGPIPE is ignored");
    assert_eq!(plain["cwd"], "/");
    assert_eq!(plain["NoNewPrivs"], "0");
    let mut none = container("none", shell("sed -n 's/:\\t/=/p' /proc/self/status"));
    none.process.as_mut().unwrap().capabilities = None;
    let none = variables(&host.run(none).await.ok());
    assert_eq!(
        (none["CapEff"].as_str(), none["CapBnd"].as_str()),
        ("0000000000000000", "0000000000000000")
    );
}
