//! The state in which a process starts: user, environment, descriptors, signals, working directory.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::response::CompletedRun;
use crate::harness::{
    Daemon, Options, TIMEOUT, is_root, procfs, skip_without_root, start_daemon, start_daemon_with, wait_until,
};

/// Adds users to /etc/passwd and /etc/group of the namespace.
fn add_users(daemon: &Daemon) {
    let script = "printf 'alice:x:2001:2002:Alice:/home/nowhere:/bin/bash\\nbob:x:2003:2003::/:\\n' >>/etc/passwd
                  printf 'alices:x:2002:\\nextra:x:3000:alice,bob\\nmore:x:3001:bob,alice\\n' >>/etc/group";
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", script], "user": "root"}));
    assert_eq!(run.stdout(), "");
}

#[test]
fn every_form_of_user_gets_its_ids_groups_home_and_no_capabilities() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    add_users(&daemon);
    // `user`, then the expected uid, gid, all groups, home, working directory.
    let cases: &[(Value, &str)] = &[
        (json!("root"), "0 0 0 /root /root"),
        (json!("0"), "0 0 0 /root /root"),
        (json!("alice"), "2001 2002 2002 3000 3001 /home/nowhere /"),
        (json!("2001"), "2001 2002 2002 3000 3001 /home/nowhere /"),
        (json!({"name": "alice"}), "2001 2002 2002 3000 3001 /home/nowhere /"),
        (json!({"uid": 2001}), "2001 2002 2002 3000 3001 /home/nowhere /"),
        (json!("2001:5"), "2001 5 5 /home/nowhere /"),
        (json!("2001:2002"), "2001 2002 2002 /home/nowhere /"),
        (json!({"uid": 2001, "gid": 5}), "2001 5 5 /home/nowhere /"),
        (json!("4242"), "4242 4242 4242 / /"),
        (json!({"uid": 4242}), "4242 4242 4242 / /"),
        (json!("4242:7"), "4242 7 7 / /"),
        (json!({"uid": 4242, "gid": 4243}), "4242 4243 4243 / /"),
        (json!("bob"), "2003 2003 2003 3000 3001 / /"),
    ];
    let script = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n) $HOME $(pwd)";
    for (user, expected) in cases {
        let run = daemon.run(&json!({"command": "sh", "args": ["-c", script], "user": user}));
        assert_eq!(run.stdout(), *expected, "{user}");
    }
    // Real, effective, saved and file system ids are those of the user, and no capability remains.
    let run = daemon.run(&json!({"command": "grep", "args": ["-E", "^(Uid|Gid|CapEff|CapPrm|CapInh|CapAmb)", "/proc/self/status"], "user": "alice"}));
    for line in run.stdout().lines() {
        let (field, rest) = line.split_once(':').expect("a field");
        let expected = match field {
            "Uid" => "2001\t2001\t2001\t2001",
            "Gid" => "2002\t2002\t2002\t2002",
            _ => "0000000000000000",
        };
        assert_eq!(rest.trim(), expected, "{field}");
    }
}

#[test]
fn an_unknown_or_malformed_user_is_refused_and_starts_nothing() {
    let daemon = start_daemon();
    let long = "x".repeat(1000);
    let unknown = [json!("nobody-here"), json!({"name": "nobody-here"}), json!("Root"), json!(long), json!("root ")];
    for user in unknown {
        daemon.post("/processes", &json!({"command": "id", "user": user})).expect_error(400, "USER_NOT_FOUND", "user");
    }
    let bad = [
        json!(""),
        json!(5),
        json!([]),
        json!({}),
        json!({"gid": 5}),
        json!({"name": "root", "uid": 0}),
        json!({"uid": -1}),
        json!({"uid": "0"}),
        json!({"uid": 0, "gid": -1}),
        json!({"uid": 4_294_967_296_u64}),
        json!({"uid": 4_294_967_295_u64}),
        json!({"name": ""}),
        json!("0:"),
        json!(":0"),
        json!("1:2:3"),
        json!("-1"),
        json!("99999999999999"),
        json!("1:x"),
        json!({"uid": 1.5}),
        json!(true),
        json!("4294967295"),
    ];
    for user in bad {
        let response = daemon.post("/processes", &json!({"command": "id", "user": user}));
        assert_eq!(response.status, 400, "{user}: {}", String::from_utf8_lossy(&response.body));
        let error = response.json();
        assert!(error["code"] == "INVALID_REQUEST" || error["code"] == "USER_NOT_FOUND", "{user}: {error}");
        assert!(error["error"].as_str().is_some_and(|sentence| sentence.contains("user")), "{user}: {error}");
    }
    assert_eq!(daemon.list(), [Value::Null; 0]);
}

#[test]
fn default_user_option_sets_the_user_of_commands() {
    if skip_without_root() {
        return;
    }
    for (user, expected) in [("root", "0 0"), ("4242:7", "4242 7"), ("1", "1 1")] {
        let daemon = start_daemon_with(&["--default-user", user]);
        assert_eq!(daemon.run_sh("echo $(id -u) $(id -g)").stdout(), expected, "{user}");
    }
    let daemon = start_daemon();
    let line = daemon.run_sh("echo $(id -un) $(id -gn) $(id -Gn) $HOME $PWD; touch here && rm here").stdout();
    assert_eq!(line, "tl-user tl-user tl-user /home/tl-user /home/tl-user");
}

/// The environment printed by a run, without INVOCATION_ID, which must be present.
fn environment_of(run: &CompletedRun) -> Vec<String> {
    let mut lines = run.lines("stdout");
    let all = lines.join("\n");
    assert_eq!(all.matches("INVOCATION_ID=").count(), 1, "{all}");
    lines.retain(|line| !line.starts_with("INVOCATION_ID="));
    lines.sort();
    lines
}

#[test]
fn the_environment_is_base_then_env_file_then_request() {
    if skip_without_root() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("create a file");
    std::fs::write(file.path(), "FROM_FILE=a b=c\nLANG=xx\nBOTH=file\nexport EXPORTED=3\n").expect("write the file");
    let options = Options::default().env("DAEMONS_OWN", "secret").env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    let plain = options.clone().start();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let base = ["HOME=/home/tl-user", "LANG=C.UTF-8", "LOGNAME=tl-user", path, "SHELL=/bin/sh", "USER=tl-user"];
    let run = plain.run(&json!({"command": "env"}));
    assert_eq!(environment_of(&run), base);
    let run = plain.run(&json!({"command": "env", "user": "root"}));
    assert!(
        environment_of(&run).contains(&"HOME=/root".to_owned())
            && environment_of(&run).contains(&"USER=root".to_owned())
    );
    let env = json!({"A": "", "USER": "other", "WITH": "a=b\nc", "ünï": "✓"});
    let lines = environment_of(&plain.run(&json!({"command": "env", "args": ["-0"], "env": env})));
    let mut expected: Vec<&str> = base.iter().filter(|line| !line.starts_with("USER=")).copied().collect();
    expected.extend(["A=", "USER=other", "WITH=a=b\nc", "ünï=✓"]);
    let joined = lines.join("\n");
    for entry in &expected {
        assert!(joined.contains(entry), "no {entry:?} in {joined:?}");
    }
    let from_file = options.args(&["--env-file", file.path().to_str().expect("a path")]).start();
    let run = from_file.run(&json!({"command": "env", "env": {"BOTH": "request"}}));
    let mut expected: Vec<&str> = base.iter().filter(|line| !line.starts_with("LANG=")).copied().collect();
    expected.extend(["BOTH=request", "EXPORTED=3", "FROM_FILE=a b=c", "LANG=xx"]);
    expected.sort_unstable();
    assert_eq!(environment_of(&run), expected);
}

#[test]
fn the_command_is_looked_up_in_the_path_of_the_request() {
    let daemon = start_daemon();
    daemon.script("my-own-tool", "#!/bin/sh\necho mine\n");
    let scratch = daemon.scratch();
    let body =
        json!({"command": "my-own-tool", "env": {"PATH": format!("/nowhere:{}:/bin:/usr/bin", scratch.display())}});
    assert_eq!(daemon.run(&body).stdout(), "mine");
    daemon.post("/processes", &json!({"command": "my-own-tool"})).expect_error(400, "COMMAND_NOT_FOUND", "my-own-tool");
    // A relative path is resolved in the working directory.
    let body = json!({"command": "./my-own-tool", "working_dir": scratch});
    assert_eq!(daemon.run(&body).stdout(), "mine");
}

fn check_clean_start(daemon: &Daemon) {
    daemon.start_process(&json!({"command": "sleep", "args": ["4600"]}));
    let pid = wait_until(TIMEOUT, "the process is up", || daemon.pids_executing("sleep 4600").first().copied());
    // The program opens files of its own while it starts; inherited descriptors would stay open.
    let descriptors = wait_until(TIMEOUT, "it has descriptors 0, 1 and 2 only", || {
        let descriptors = procfs::descriptors(pid);
        descriptors.iter().map(|(number, _)| number.as_str()).eq(["0", "1", "2"]).then_some(descriptors)
    });
    assert_eq!(descriptors[0].1, "/dev/null");
    assert!(descriptors[1].1.starts_with("pipe:") && descriptors[2].1.starts_with("pipe:"), "{descriptors:?}");
    assert_ne!(descriptors[1].1, descriptors[2].1);
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(procfs::status(pid, field).as_deref(), Some("0000000000000000"), "{field}");
    }
    assert_eq!(procfs::status(pid, "Umask").as_deref(), Some("0022"));
    assert_eq!(procfs::status(pid, "NoNewPrivs").as_deref(), Some("0"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("the fields").split_whitespace().collect();
    // Fields: state, parent, group, session, terminal.
    assert_eq!((fields[1], fields[4]), (daemon.pid.to_string().as_str(), "0"), "its parent, and no terminal");
    assert_eq!(
        (fields[2], fields[3]),
        (pid.to_string().as_str(), pid.to_string().as_str()),
        "its own group and session"
    );
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("its oom score");
    assert_eq!(score.trim(), "0");
}

#[test]
fn a_process_starts_with_clean_descriptors_signals_session_and_umask() {
    check_clean_start(&start_daemon());
}

#[test]
fn a_process_of_a_subreaper_starts_with_clean_descriptors_signals_session_and_umask() {
    check_clean_start(&Options::subreaper().start());
}

#[test]
fn working_dir_is_used_and_must_be_an_accessible_directory() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let run = daemon.run(&json!({"command": "pwd", "working_dir": scratch}));
    assert_eq!(Path::new(&run.stdout()), scratch);
    daemon.post("/processes", &json!({"command": "pwd", "working_dir": "/no/such"})).expect_error(
        400,
        "WORKING_DIR_NOT_FOUND",
        "working_dir",
    );
    daemon.post("/processes", &json!({"command": "pwd", "working_dir": "/etc/passwd"})).expect_error(
        400,
        "WORKING_DIR_NOT_FOUND",
        "working_dir",
    );
    if is_root() {
        let closed = scratch.join("closed");
        std::fs::create_dir(&closed).expect("create a directory");
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("close it");
        daemon.post("/processes", &json!({"command": "pwd", "working_dir": closed})).expect_error(
            403,
            "PERMISSION_DENIED",
            "",
        );
        let as_root = daemon.run(&json!({"command": "pwd", "working_dir": closed, "user": "root"}));
        assert_eq!(Path::new(&as_root.stdout()), closed);
    }
}
