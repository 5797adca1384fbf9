//! The command line, with the echo program in the place of the four functions.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::support::{echo, until, within};

#[tokio::test]
async fn the_suite_runs_until_it_is_interrupted_and_takes_its_processes_along() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["planner", "worker", "watermark", "export"] {
        let program = folder.path().join(format!("atlas-lambda-{name}"));
        std::os::unix::fs::symlink(echo(), program).unwrap();
    }
    std::fs::write(folder.path().join("atlas.toml"), "").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_local-hosts"))
        .args(["lambda", "-c", "atlas.toml", "--programs", ".", "--fast"])
        .args(["--concurrency", "3", "--fault", "fire-twice=1"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until_line = async |what: &str| {
        within(async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it ended");
                if line.contains(what) {
                    return line;
                }
            }
        })
        .await
    };
    until_line("planner   every 15 s").await;
    until_line("worker    from export-work, 3 at once").await;
    until_line("worker    from export-work-poison, 3 at once").await;
    let url = until_line("export    curl -X POST ").await;
    let url = url.rsplit(' ').next().unwrap();
    let url = url.strip_suffix("api/exports").unwrap();
    let event = reqwest::get(format!("{url}runs?x=1")).await.unwrap();
    assert!(
        event
            .text()
            .await
            .unwrap()
            .contains("\"rawPath\":\"/runs\"")
    );
    let report = until_line("succeeded").await;
    assert!(
        report.contains("export") && report.contains(" ms") && report.contains(" MB"),
        "{report}"
    );
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();

    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    assert!(within(child.wait()).await.unwrap().success());
    for child in children.split_whitespace() {
        let child: i32 = child.parse().unwrap();
        until(async || super::support::state(child).is_none()).await;
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |config: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_local-hosts"))
            .args(["lambda", "--programs", ".", "-c", config])
            .current_dir(folder.path())
            .output()
            .await
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = run("atlas.toml").await;
    assert!(
        error.contains("there is no configuration atlas.toml"),
        "{error}"
    );
    std::fs::write(folder.path().join("atlas.toml"), "").unwrap();
    let error = run("atlas.toml").await;
    assert!(
        error.contains("atlas-lambda-planner; build the functions first"),
        "{error}"
    );
}
