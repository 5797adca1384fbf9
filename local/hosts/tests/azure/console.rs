//! The command line: from a folder to a running suite, and to its end.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::app::{App, handler, http, queue_trigger, timer, within};

fn suite() -> App {
    let app = App::bare(
        json!({ "customHandler": { "description": { "defaultExecutablePath": "handler" } } }),
    );
    app.function("worker", &[queue_trigger("export-work")]);
    app.function("planner", &[timer("0 0 0 1 1 *")]);
    app.function("watermark", &http("watermark", "function", &["get"]));
    std::fs::write(app.folder().join("atlas.toml"), "").unwrap();
    app
}

#[tokio::test]
async fn the_command_line_shows_each_invocation_and_ends_with_its_children_on_sigint() {
    let app = suite();
    // As a build leaves it: the handler beside the program, the app folder where the repository has it.
    let folder = app.folder();
    let program = folder.join("local-hosts");
    // Not by this process: another test could fork while it has the file open for writing, and then nobody can run it.
    let copied = std::process::Command::new("cp")
        .args([
            env!("CARGO_BIN_EXE_local-hosts").as_ref(),
            program.as_os_str(),
        ])
        .status();
    assert!(copied.unwrap().success());
    std::os::unix::fs::symlink(handler(), folder.join("atlas-azure")).unwrap();
    std::fs::create_dir_all(folder.join("functions/azure")).unwrap();
    std::fs::remove_file(app.options.app.join("handler")).unwrap();
    std::fs::rename(&app.options.app, folder.join("functions/azure/app")).unwrap();
    let mut host = Command::new(&program)
        .args(["azure", "-c", "atlas.toml", "--fast", "--instances", "2"])
        .current_dir(folder)
        .env("ECHO_FOLDER", folder)
        .env_remove("LOCAL_HOSTS_QUEUE")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
    let mut start = None;
    let mut run = None;
    while run.is_none() {
        let line = within(lines.next_line())
            .await
            .unwrap()
            .expect("the host ended");
        if let Some((_, command)) = line.split_once("curl -X POST ") {
            let (url, key) = command.split_once(" -H 'x-functions-key: ").unwrap();
            let sent = reqwest::Client::builder().no_proxy().build().unwrap();
            let sent = sent
                .post(url)
                .header("x-functions-key", key.trim_end_matches('\''));
            start = Some(sent.send().await.unwrap().status());
        }
        run = Some(line).filter(|line| line.ends_with("succeeded"));
    }
    assert_eq!(start.unwrap(), 202);
    let run = run.unwrap();
    assert!(run.contains("planner") && run.contains(" ms "), "{run}");
    let starts = app.starts();
    assert_eq!(starts.len(), 2);

    let pid = Pid::from_raw(i32::try_from(host.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert!(within(host.wait()).await.unwrap().success());
    for start in starts {
        let child = i32::try_from(start["process"].as_i64().unwrap()).unwrap();
        let child = Pid::from_raw(child).unwrap();
        assert!(rustix::process::test_kill_process(child).is_err());
    }
}

#[tokio::test]
async fn a_wrong_start_says_what_helps() {
    let app = suite();
    let run = async |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_local-hosts"))
            .arg("azure")
            .args(arguments)
            .current_dir(app.folder())
            .env_remove("LOCAL_HOSTS_QUEUE")
            .output();
        let output = within(output).await.unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let without = run(&[]).await;
    assert!(
        without.contains("functions/azure/app") && without.contains("--app"),
        "{without}"
    );
    let missing = run(&["--app", "app", "-c", "none.toml"]).await;
    assert!(
        missing.contains("none.toml") && missing.contains("--config"),
        "{missing}"
    );
    let fault = run(&["--app", "app", "--fault", "flood=1"]).await;
    assert!(fault.contains("flood"), "{fault}");
}
