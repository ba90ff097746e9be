//! Input and output of terminal sessions: every byte arrives, in order and once.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::websocket::{SessionEnd, client_frame};
use crate::harness::{TIMEOUT, procfs, start_daemon, wait_until};

#[test]
fn control_characters_reach_the_program() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("trap 'echo interrupted' INT; echo up; cat; cat; echo over; exit 5");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    terminal.ask("first", "first\r\nfirst");
    // On Ctrl-C the kernel discards pending input, so the second `cat` must run before more is typed.
    terminal.type_in("\x03");
    terminal.expect("interrupted");
    terminal.ask("second", "second\r\nsecond");
    terminal.type_in("\x04");
    terminal.expect("over");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(5));
}

#[test]
fn all_byte_values_pass_in_both_directions() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; head -c 300 | od -An -v -tu1; printf 'ünï ✓ \\377\\000.'");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    let bytes: Vec<u8> = (0..300).map(|number| (number % 256) as u8).collect();
    // Pieces of 7 bytes split multi-byte characters between messages.
    bytes.chunks(7).for_each(|piece| terminal.type_in(piece));
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    let tail = "ünï ✓ ".as_bytes().iter().chain(b"\xff\0.").copied().collect::<Vec<u8>>();
    assert!(terminal.output.ends_with(&tail), "{:?}", terminal.text());
    let shown = &terminal.output[..terminal.output.len() - tail.len()];
    let numbers: Vec<u8> =
        String::from_utf8_lossy(shown).split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers, bytes);
}

/// An interactive shell with line editing, driven prompt by prompt.
#[test]
fn two_hundred_prompts_lose_and_repeat_no_byte() {
    let daemon = start_daemon();
    let session = daemon.open_pty(&json!({"command": "bash", "args": ["--norc", "-i"], "env": {"PS1": "<$> "},
        "cols": 500}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("<$> ");
    // Bracketed paste would add control sequences to each prompt.
    terminal.ask("bind 'set enable-bracketed-paste off' 2>/dev/null", "<$> ");
    let begin = terminal.output.len();
    let mut right = String::new();
    for number in 0..200 {
        let line = format!("echo {number} {}", "é".repeat(number));
        terminal.type_in(format!("{line}\n"));
        terminal.expect("<$> ");
        right += &format!("{line}\r\n{number} {}\r\n<$> ", "é".repeat(number));
    }
    // `echo` prints no space for an empty word.
    let right = right.replace("echo 0 \r\n0 \r\n", "echo 0 \r\n0\r\n");
    assert_eq!(String::from_utf8_lossy(&terminal.output[begin..]), right);
    terminal.type_in("\x04");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
}

#[test]
fn all_output_comes_before_the_exit() {
    let daemon = start_daemon();
    for round in 0..20 {
        let session = daemon.pty_sh("seq 1 20000; exit 9");
        let mut terminal = daemon.watch(&session);
        assert_eq!(terminal.wait_for_end(), SessionEnd::exited(9));
        let text = terminal.text();
        let tail: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(tail.last(), Some(&"20000"), "round {round}");
        assert!(tail.windows(2).skip(1).all(|two| two[1].parse::<u32>().ok() > two[0].parse().ok()), "round {round}");
    }
}

#[test]
fn a_hundred_mib_arrive_complete_while_another_session_echoes_quickly() {
    const SIZE: usize = 100 << 20;
    let daemon = start_daemon();
    // Writes 5 MiB at a time, each after the previous one was read: on a busy machine the reader may be late by a
    // second.
    let script = "#!/bin/sh\nstty raw -echo; echo up; n=1\nwhile [ $n -lt 6553600 ]; do\nread -r line\n\
                  seq -f %015.0f $n $((n + 327679)) | cat\nn=$((n + 327680))\ndone\n";
    let source = daemon.script("print", script);
    let large = daemon.open_pty(&json!({"command": source}));
    let echo = daemon.pty_sh("stty raw -echo; echo up; exec cat");
    let mut terminal = daemon.watch(&echo);
    terminal.expect("up");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let begun = Instant::now();
            let mut terminal = daemon.watch(&large);
            terminal.expect("up\n");
            for part in 1..=20 {
                terminal.ask("go", &format!("{:015}\n", part * 327_680));
            }
            assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
            (terminal.output.split_off(3), begun.elapsed())
        });
        let mut times = Vec::new();
        while !reader.is_finished() {
            let begun = Instant::now();
            terminal.type_in("x");
            terminal.expect("x");
            times.push(begun.elapsed());
        }
        times.sort();
        let (shown, took) = reader.join().expect("the reader");
        assert_eq!(shown.len(), SIZE);
        assert!(shown.chunks(16).zip(1..).all(|(line, number): (&[u8], u32)| {
            std::str::from_utf8(line).is_ok_and(|line| line.trim_end().parse() == Ok(number))
        }));
        let p99 = times[(times.len() - 1) * 99 / 100];
        eprintln!("100 MiB in {took:?}; {} echoes, p50 {:?}, p99 {p99:?}", times.len(), times[times.len() / 2]);
        // The goal is 5 ms for p99, which the benchmark measures. On a busy machine echoes wait for a CPU, as does the
        // other session; behind its 20 parts, an echo would take a twentieth of the whole.
        let p50 = times[times.len() / 2];
        let (most50, most99) = (Duration::from_millis(50).max(took / 100), Duration::from_secs(1).max(took / 5));
        assert!(p50 < most50 && p99 < most99, "{p50:?}, {p99:?} of {} in {took:?}", times.len());
    });
}

#[test]
fn input_is_kept_until_the_program_reads_it() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line </dev/null; sleep 0.3; head -c 3000000 | wc -c");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    for _ in 0..30 {
        terminal.type_in([b'x'; 100_000]);
    }
    terminal.expect("3000000");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
}

#[test]
fn an_overlong_line_of_input_does_not_block_the_session() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty -echo; echo up; exec cat");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    // In canonical mode the kernel keeps 4 KiB of a line and drops the rest.
    terminal.type_in([b'x'; 500_000]);
    terminal.type_in("\nnext\n");
    terminal.expect("next\r\n");
}

#[test]
fn a_session_survives_its_clients_and_replays_its_last_output() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty -echo -onlcr; echo up; while read -r n; do seq -f %015.0f 1 $n; echo done; done");
    let mut terminal = daemon.watch(&session);
    // What is typed before `stty` has run is echoed.
    terminal.expect("up\n");
    terminal.ask("10", "done");
    terminal.disconnect();
    daemon.wait_for_clients(TIMEOUT, &session, 0);
    let mut terminal = daemon.watch(&session);
    assert_eq!(terminal.expect("done\n").lines().count(), 11, "all of it is replayed");
    terminal.type_in("200000\n");
    // Disconnects without a Close while output is being sent.
    drop(terminal);
    let mut terminal = wait_until(TIMEOUT, "the program has written everything", || {
        let mut terminal = daemon.watch(&session);
        while terminal.output.len() < 1 << 20 && !terminal.output.ends_with(b"done\n") {
            terminal.expect("\n");
        }
        terminal.output.ends_with(b"200000\ndone\n").then_some(terminal)
    });
    let text = terminal.text();
    let numbers: Vec<u32> = text.lines().rev().skip(1).filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.len() > 65_000 && numbers[0] == 200_000, "{}", numbers.len());
    assert!(numbers[..65_000].windows(2).all(|two| two[0] == two[1] + 1));
    terminal.output.clear();
    let mut terminal = daemon.watch(&session);
    terminal.type_in("3\n\x04");
    terminal.expect("000000000000003\ndone\n");
    assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    let mut late = daemon.watch(&session);
    assert_eq!(late.wait_for_end(), SessionEnd::exited(0), "an ended session keeps its exit code for 60 s");
    assert!(late.text().ends_with("000000000000003\ndone\n"));
}

#[test]
fn several_clients_see_all_output_and_can_all_type() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty -echo; echo up; cat");
    let mut terminals: Vec<_> = (0..5).map(|_| daemon.watch(&session)).collect();
    terminals.iter_mut().for_each(|terminal| drop(terminal.expect("up")));
    assert_eq!(daemon.client_count(&session), 5);
    for number in 0..5 {
        terminals[number].type_in(format!("line {number}\n"));
        let line = format!("line {number}\r\n");
        terminals
            .iter_mut()
            .for_each(|terminal| assert_eq!(terminal.expect(&line), if number == 0 { "\r\n" } else { "" }));
    }
    terminals.remove(0).disconnect();
    daemon.wait_for_clients(TIMEOUT, &session, 4);
    terminals[0].type_in("\x04");
    for terminal in &mut terminals {
        assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
    }
}

#[test]
fn a_client_that_floods_delays_no_request_and_uses_bounded_memory() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("sleep 60");
    let terminal = daemon.watch(&session);
    let before = procfs::kilobytes(daemon.pid, "VmRSS");
    let mut socket = terminal.socket.get_ref().try_clone().expect("duplicate the socket");
    socket.set_write_timeout(Some(Duration::from_millis(200))).expect("set the timeout");
    // Sends resizes and pings as fast as possible and reads nothing.
    let sizes = [[0, 80, 0, 24], [0, 81, 0, 25]];
    let frames: Vec<u8> = sizes.map(|size| client_frame(0x82, &[&[1][..], &size].concat())).concat();
    let flood = [frames, client_frame(0x89, &[b'x'; 125])].concat().repeat(500);
    let begun = Instant::now();
    let flooding = std::thread::spawn(move || {
        while begun.elapsed() < Duration::from_secs(3) {
            if socket.write_all(&flood).is_err() {
                return;
            }
        }
    });
    let mut slowest = Duration::ZERO;
    while !flooding.is_finished() {
        let asked = Instant::now();
        assert_eq!(daemon.run_sh("echo hi").stdout(), "hi");
        slowest = slowest.max(asked.elapsed());
    }
    flooding.join().expect("the flood");
    assert!(slowest < Duration::from_secs(20), "a run took {slowest:?}");
    let grown = procfs::kilobytes(daemon.pid, "VmRSS").saturating_sub(before);
    assert!(grown < 16 << 10, "it has grown by {grown} kB");
}

#[test]
fn input_sent_before_a_disconnect_is_delivered() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; sleep 0.2; head -c 200000 | wc -c; exec sleep 4742");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    terminal.type_in(vec![b'x'; 200_000]);
    terminal.disconnect();
    daemon.watch(&session).expect("200000");
}
