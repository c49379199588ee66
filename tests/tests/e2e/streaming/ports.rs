//! `crictl port-forward`.

use std::{
    process::{Command, Stdio},
    thread,
};

use bulkhead_tests::{ContainerSpec, Daemon, PodSpec, until};

use super::{Running, TRANSPORTS};

/// The port of the node that is forwarded to `port`, from what `crictl` says.
#[track_caller]
pub(super) fn local_port(forward: &Running, port: u16) -> u16 {
    until(&format!("the way to port {port}"), || {
        let said = forward.stdout();
        let line = said.lines().find(|line| {
            line.starts_with("Forwarding from 127.0.0.1:") && line.ends_with(&format!("-> {port}"))
        });
        let local = line.and_then(|line| line.split([':', ' ']).nth(3)?.parse().ok());
        local.ok_or_else(|| format!("{said} {}", forward.stderr()))
    })
}

fn get(port: u16) -> (bool, String) {
    let url = format!("http://127.0.0.1:{port}/");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", &url])
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn ports_on_the_pods_loopback_are_reached_many_times_at_once() {
    let daemon = Daemon::shared();
    let pod = daemon.run_pod(PodSpec::new("forward"));
    // Neither can be reached from outside of the pod.
    let container = pod.run(ContainerSpec::sh(
        "mkdir /four /six; echo four > /four/index.html; echo six > /six/index.html; httpd -p 127.0.0.1:8004 -h /four; \
         exec httpd -f -p [::1]:8006 -h /six",
    ));
    until("both ports to be listened on", || {
        let listening = container.sh("netstat -ltn | grep -c ':800[46] ' || true");
        if listening == "2" { Ok(()) } else { Err(listening) }
    });
    for transport in TRANSPORTS {
        let arguments = [
            "port-forward",
            "-r",
            transport,
            pod.id(),
            "0:8004",
            "0:8006",
            "0:8009",
        ];
        let forward = Running::start(&daemon, &arguments, Stdio::null());
        let (four, six) = (local_port(&forward, 8004), local_port(&forward, 8006));
        assert_eq!(get(four), (true, "four".to_owned()), "{}", forward.stderr());
        assert_eq!(get(six), (true, "six".to_owned()), "{}", forward.stderr());
        thread::scope(|scope| {
            let getting: Vec<_> = (0..16)
                .map(|number| scope.spawn(move || get(if number % 2 == 0 { four } else { six })))
                .collect();
            for (number, got) in getting.into_iter().enumerate() {
                let text = if number % 2 == 0 { "four" } else { "six" };
                assert_eq!(got.join().unwrap(), (true, text.to_owned()));
            }
        });
        let (answered, _) = get(local_port(&forward, 8009));
        assert!(!answered, "nobody listens there");
        until("crictl to say so", || {
            let said = forward.stderr();
            if said.contains("127.0.0.1:8009") && said.contains("refused") {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
}
