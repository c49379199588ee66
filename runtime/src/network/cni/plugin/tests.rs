//! Tests of running one plugin, with plugins that behave and others.

use std::os::fd::AsRawFd;

use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;

use super::*;
use crate::network::cni::fake::FakePlugins;

async fn run(plugins: &FakePlugins, seconds: u64) -> Result<Vec<u8>, PluginFault> {
    plugins
        .runner(seconds)
        .run(
            "plugin",
            Command::Add,
            &[("CNI_IFNAME", "eth0".into())],
            &json!({"name": "net"}),
        )
        .await
}

#[tokio::test]
async fn a_plugin_gets_its_variables_and_nothing_else_of_the_daemons() {
    let plugins = FakePlugins::new();
    plugins.add("plugin", "env; ls -l /proc/self/fd; pwd");
    let (_reader, writer) = io::pipe().unwrap();
    fcntl_setfd(&writer, FdFlags::empty()).unwrap();
    let output = String::from_utf8(run(&plugins, 30).await.unwrap()).unwrap();
    let path = format!("CNI_PATH=/nonexistent:{}\n", plugins.directory().display());
    for part in ["CNI_COMMAND=ADD\n", "CNI_IFNAME=eth0\n", "PATH=", path.as_str()] {
        assert!(output.contains(part), "{part}: {output}");
    }
    assert!(output.ends_with("\n/\n"), "{output}");
    assert!(!output.contains("CARGO"), "{output}");
    let inherited = format!(" {} -> pipe", writer.as_raw_fd());
    assert!(!output.contains(&inherited), "{output}");
}

#[tokio::test]
async fn an_error_is_told_with_its_code_and_words() {
    let plugins = FakePlugins::new();
    plugins.add(
        "plugin",
        r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no lease","details":"server silent"}'; exit 1"#,
    );
    let fault = run(&plugins, 30).await.unwrap_err();
    assert_eq!(
        fault.to_string(),
        "error 11 (try again later): no lease: server silent"
    );
}

#[tokio::test]
async fn garbage_and_silence_at_failure_are_told_as_they_are() {
    let plugins = FakePlugins::new();
    plugins.add("plugin", "echo '{oops'; echo unseen >&2; exit 3");
    let fault = run(&plugins, 30).await.unwrap_err().to_string();
    assert_eq!(fault, "it ended with exit status: 3, and printed: {oops");
    plugins.add("plugin", "printf 'line\\n\\033[1mtwo' >&2; exit 3");
    let fault = run(&plugins, 30).await.unwrap_err().to_string();
    assert_eq!(fault, "it ended with exit status: 3, and printed: line [1mtwo");
    plugins.add("plugin", "kill -9 $$");
    let fault = run(&plugins, 30).await.unwrap_err().to_string();
    assert_eq!(fault, "it ended with signal: 9 (SIGKILL), and printed nothing");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    let plugins = FakePlugins::new();
    let number = plugins.path("number");
    plugins.add(
        "plugin",
        &format!(
            "sleep 1000 & echo $! >{}; echo waiting >&2; wait",
            number.display()
        ),
    );
    let fault = run(&plugins, 1).await.unwrap_err().to_string();
    assert_eq!(
        fault,
        "it was killed because it had not ended after 1 s, and printed: waiting"
    );
    let start = Instant::now();
    while !is_gone(&number) {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the plugin's child lives on"
        );
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_plugin_ends_with_the_daemon() {
    let plugins = FakePlugins::new();
    let number = plugins.path("number");
    plugins.add(
        "plugin",
        &format!("echo $$ >{}; exec sleep 1000", number.display()),
    );
    // A thread that ends without having dropped anything, as when the daemon is killed.
    let kept = std::thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut running = Box::pin(run(&plugins, 1000));
            runtime.block_on(async {
                while !number.exists() {
                    let _ = timeout(Duration::from_millis(10), &mut running).await;
                }
            });
            (running, runtime)
        });
        daemon.join().unwrap()
    });
    let start = Instant::now();
    while !is_gone(&number) {
        assert!(start.elapsed() < Duration::from_secs(10), "the plugin lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(kept);
}

/// Whether the process whose number is in that file has ended.
fn is_gone(number: &Path) -> bool {
    let number = std::fs::read_to_string(number).unwrap();
    match std::fs::read_to_string(format!("/proc/{}/stat", number.trim())) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    }
}

#[tokio::test]
async fn a_plugin_that_prints_without_end_is_killed() {
    let plugins = FakePlugins::new();
    plugins.add("plugin", "exec yes");
    let fault = run(&plugins, 30).await.unwrap_err().to_string();
    assert_eq!(fault, "it was killed because it printed more than 1048576 bytes");
}

#[tokio::test]
async fn megabytes_on_standard_error_are_let_go_and_the_end_is_kept() {
    let plugins = FakePlugins::new();
    plugins.add("plugin", "yes | head -c 5000000 >&2; echo the end >&2; exit 1");
    let fault = run(&plugins, 30).await.unwrap_err();
    let PluginFault::Failed { output, .. } = &fault else {
        panic!("{fault}");
    };
    assert!(output.len() < 500, "{output}");
    plugins.add("plugin", "yes | head -c 5000000 >&2; echo '{}'");
    assert_eq!(run(&plugins, 30).await.unwrap(), b"{}\n");
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_does_not_keep_the_result() {
    let plugins = FakePlugins::new();
    let number = plugins.path("number");
    plugins.add(
        "plugin",
        &format!("sleep 1000 & echo $! >{}; echo '{{}}'", number.display()),
    );
    let start = Instant::now();
    assert_eq!(run(&plugins, 60).await.unwrap(), b"{}\n");
    assert!(start.elapsed() < Duration::from_secs(30));
    let child: i32 = std::fs::read_to_string(number).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_plugin_that_is_being_installed_is_waited_for() {
    let plugins = FakePlugins::new();
    plugins.add("plugin", "echo '{}'");
    let path = plugins.path("plugin");
    let open = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    let installer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(open);
    });
    assert_eq!(run(&plugins, 30).await.unwrap(), b"{}\n");
    assert!(installer.is_finished());
}

#[tokio::test]
async fn a_plugin_that_is_not_there_is_missed_by_its_directories() {
    let plugins = FakePlugins::new();
    let fault = run(&plugins, 30).await.unwrap_err().to_string();
    assert!(fault.contains("no such executable in /nonexistent, /"), "{fault}");
    std::fs::write(plugins.path("plugin"), "not executable").unwrap();
    assert!(matches!(run(&plugins, 30).await, Err(PluginFault::Missing(_))));
}
