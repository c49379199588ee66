//! Pulls as an operator watches them, and what a killed daemon leaves of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use bulkhead_tests::{Daemon, DaemonOptions, Environment, until};
use rustix::process::Signal;

/// What `bulkhead images` says.
fn images(daemon: &Daemon) -> String {
    let output = Command::new(Environment::get().bin.join("bulkhead"))
        .arg("--config")
        .arg(daemon.config_file())
        .arg("images")
        .output()
        .expect("bulkhead starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How much of a pull has been received, in per cent; nothing while none is under way.
fn received(said: &str) -> Option<u8> {
    let (_, pulls) = said.split_once("PULLING")?;
    let (before, _) = pulls.split_once(" %")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Every file in a directory and those below.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.expect("an entry of a directory").path();
            if path.is_dir() { files(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
#[ignore = "runs in the node: hack/test"]
fn a_daemon_killed_while_it_pulls_has_whole_images_and_no_stray_byte_after() {
    let daemon = Daemon::private(DaemonOptions::new());
    let small = Environment::get().image("packing/plain:latest");
    let large = Environment::get().image("large:latest");
    daemon.try_pull(&small).expect("a small image");
    let store = daemon.root().join("images");
    let before = files(&store);
    let mut interrupted = 0;
    for least in [1, 30, 60, 90] {
        thread::scope(|scope| {
            let pull = scope.spawn(|| daemon.try_pull(&large));
            until(&format!("{least} % of a pull"), || {
                let said = images(&daemon);
                if pull.is_finished() || received(&said).is_some_and(|percent| percent >= least) {
                    Ok(())
                } else {
                    Err(said)
                }
            });
            daemon.end_with(Signal::KILL);
            let pulled = pull.join().expect("the pull's thread");
            interrupted += u32::from(pulled.is_err());
        });
        daemon.start_again();
        // A pull may have been done before its daemon was killed; then all of it is there.
        if daemon.image(&large).is_some() {
            daemon.try_remove_image(&large).expect("it is removed");
        }
        until("the store to have what the small image needs alone", || {
            let now = files(&store);
            if now == before {
                Ok(())
            } else {
                Err(format!("{now:?} instead of {before:?}"))
            }
        });
        assert_eq!(daemon.images().len(), 1, "the small image is there");
    }
    assert!(
        interrupted > 0,
        "no pull was under way when its daemon was killed"
    );
    daemon.try_pull(&large).expect("a pull that nobody disturbs");
    for image in daemon.images() {
        daemon.try_remove_image(&image.id).expect("it is removed");
    }
    assert_eq!(files(&store), Vec::<PathBuf>::new());
}
