//! Files: reading, ranges, conditions, users, listings, and refused requests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::files::{encoded, files, get, list, names, put};
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Response, procfs, skip_without_root, start_daemon};

#[test]
fn an_uploaded_file_is_read_back_unchanged_with_its_owner_and_mode() {
    // Without root, the home directory would be that of the user who runs the tests.
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let content: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    for (path, size) in [("empty", 0), ("a b+c%", 5), ("sub/deep/ünï ✓.bin", 65_536), ("large", 200_000)] {
        let content = &content[..size];
        let response = put(&daemon, path, "", content);
        assert_eq!((response.status, response.body.len()), (204, 0), "{path}");
        for path in [path.to_owned(), format!("./{path}"), format!("/home/tl-user//{path}")] {
            let response = get(&daemon, &path, "");
            assert_eq!((response.status, response.body == content), (200, true), "{path}");
            assert_eq!(response.header("content-type"), Some("application/octet-stream"));
            assert_eq!(response.header("content-length"), Some(&*size.to_string()), "{path}");
            assert_eq!(response.header("accept-ranges"), Some("bytes"));
        }
        let head = daemon.request("HEAD", &files(path, ""), None);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some(&*size.to_string()), "{path}");
    }
    // Created files and directories belong to the user and have the default modes.
    let made = daemon.run_sh("cd; stat -c '%U %G %a %n' sub sub/deep large 'a b+c%'; umask");
    let user = "tl-user tl-user";
    let right = format!("{user} 755 sub\n{user} 755 sub/deep\n{user} 644 large\n{user} 644 a b+c%");
    assert!(made.stdout().starts_with(&right), "{}", made.stdout());
    let listing = list(&daemon, "sub", "").expect(200);
    assert_eq!(listing["path"], "/home/tl-user/sub");
    assert_eq!(listing["entries"][0]["name"], "deep");
    assert_eq!(listing["entries"][0]["size"], Value::Null);
    daemon.delete(&files("a b+c%", "")).expect(204);
    get(&daemon, "a b+c%", "").expect_error(404, "NOT_FOUND", "/home/tl-user/a b+c%");
    assert_eq!(names(&daemon, "/home/tl-user"), ["sub", "empty", "large"]);
}

#[test]
fn a_byte_range_is_served_as_206_and_an_invalid_one_as_416_or_200() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    for size in [1000_usize, 1 << 20] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let file = scratch.join("file");
        fs::write(&file, &content).expect("write the file");
        let ask = |method: &str, head: &str| {
            daemon.open(method, &files(&file, ""), head, b"").into_response(&format!("{method} {head:?} of {size}"))
        };
        let last = size - 1;
        for (value, first, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=10-19".to_owned(), 10, 20),
            ("bytes=10-".to_owned(), 10, size),
            ("bytes=-7".to_owned(), size - 7, size),
            (format!("bytes={last}-"), last, size),
            (format!("bytes=5-{}", size * 2), 5, size),
            (format!("bytes=-{}", size * 2), 0, size),
        ] {
            let response = ask("GET", &format!("Range: {value}\r\n"));
            assert_eq!((response.status, response.body == content[first..end]), (206, true), "{value}");
            let said = format!("bytes {first}-{}/{size}", end - 1);
            assert_eq!(response.header("content-range"), Some(&*said), "{value}");
            assert_eq!(response.header("content-length"), Some(&*(end - first).to_string()), "{value}");
        }
        for value in [format!("bytes={size}-"), format!("bytes={size}-{}", size * 2), "bytes=-0".to_owned()] {
            let response = ask("GET", &format!("Range: {value}\r\n"));
            response.expect_error(416, "RANGE_NOT_SATISFIABLE", &size.to_string());
            assert_eq!(response.header("content-range"), Some(&*format!("bytes */{size}")));
        }
        for head in [
            "Range: bytes=0-1,5-6\r\n",
            "Range: bytes=6-5\r\n",
            "Range: lines=0-1\r\n",
            "Range: nonsense\r\n",
            "Range: bytes=0-1\r\nIf-Range: \"etag\"\r\n",
        ] {
            let response = ask("GET", head);
            assert_eq!((response.status, response.body == content), (200, true), "{head:?}");
        }
        let head = daemon.open("HEAD", &files(&file, ""), "Range: bytes=0-1\r\n", b"");
        assert_eq!((head.status, head.header("content-length")), (200, Some(&*size.to_string())));
    }
    fs::write(scratch.join("empty"), "").expect("write the file");
    let empty = daemon.open("GET", &files(scratch.join("empty"), ""), "Range: bytes=0-\r\n", b"");
    let response = empty.into_response("a range of an empty file");
    response.expect_error(416, "RANGE_NOT_SATISFIABLE", "0 bytes");
    assert_eq!(response.header("content-range"), Some("bytes */0"));
}

/// Sends a request with these header lines and a body that is not JSON.
fn send(daemon: &Daemon, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
    let length = match (method, body.len()) {
        ("GET" | "DELETE" | "POST", 0) => String::new(),
        (_, length) => format!("Content-Length: {length}\r\n"),
    };
    let head = daemon.request_head(method, path, &format!("Connection: close\r\n{headers}{length}"));
    let response = ResponseStream::send(daemon.connect(), &[head.as_bytes(), body].concat());
    response.into_response(&format!("{method} {path} {headers:?}"))
}

#[test]
fn content_range_and_content_encoding_are_refused_on_uploads() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let (file, absent) = (scratch.join("file"), scratch.join("made/absent"));
    fs::write(&file, "0123456789").expect("write the file");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).expect("set the mode");
    for target in [&file, &absent] {
        // `curl -C 5 -T` sends such a range.
        for range in ["bytes 5-9/10", "bytes 0-9/10", "bytes */10", "nonsense"] {
            let response = send(&daemon, "PUT", &files(target, ""), &format!("Content-Range: {range}\r\n"), b"56789");
            response.expect_error(400, "INVALID_REQUEST", "Content-Range");
        }
        for coding in ["gzip", "deflate", "br", "identity, gzip", "x-gzip", "identity\r\nContent-Encoding: zstd"] {
            for body in [&b"\x1f\x8b\x08"[..], b""] {
                let head = format!("Content-Encoding: {coding}\r\n");
                let response = send(&daemon, "PUT", &files(target, ""), &head, body);
                response.expect_error(415, "UNSUPPORTED_ENCODING", "Content-Encoding");
                assert_eq!(response.header("accept-encoding"), Some("identity"));
            }
        }
    }
    assert_eq!(fs::read(&file).expect("the file"), b"0123456789");
    assert_eq!(names(&daemon, &scratch), ["file"], "no directory was made");
    for head in ["Content-Encoding: identity\r\n", "Content-Encoding: Identity, identity\r\n", "Content-Encoding:\r\n"]
    {
        send(&daemon, "PUT", &files(&file, ""), head, head.as_bytes()).expect(204);
        assert_eq!(fs::read(&file).expect("the file"), head.as_bytes());
    }
    // Encoded bodies are refused for JSON and for stdin as well.
    let start = json!({"command": "cat", "stdin_mode": "pipe"}).to_string();
    let gzip = "Content-Encoding: gzip\r\n";
    for path in ["/processes", "/processes/run", "/pty", "/processes/none/signal"] {
        send(&daemon, "POST", path, gzip, start.as_bytes()).expect_error(415, "UNSUPPORTED_ENCODING", "gzip");
    }
    assert!(daemon.list().is_empty());
    let cat = daemon.post("/processes", &json!({"command": "cat", "stdin_mode": "pipe"})).expect(201);
    let stdin = format!("/processes/{}/stdin", cat["pid"]);
    send(&daemon, "POST", &stdin, gzip, b"\x1f\x8b").expect_error(415, "UNSUPPORTED_ENCODING", "gzip");
    send(&daemon, "POST", &stdin, "Content-Encoding: identity\r\n", b"plain\n").expect(204);
    send(&daemon, "POST", &format!("{stdin}/close"), "", b"").expect(204);
    let pid = cat["pid"].as_u64().expect("a PID");
    daemon.wait_for_end(pid);
    assert_eq!(daemon.raw_output(pid, "stdout"), b"plain\n");
    // Endpoints that ignore the body ignore its encoding too.
    assert_eq!(send(&daemon, "GET", "/health", gzip, b"").status, 200);
    let head = format!("{gzip}Content-Range: bytes 1-2/3\r\n");
    assert_eq!(send(&daemon, "GET", &files(&file, ""), &head, b"").status, 200);
}

#[test]
fn conditional_requests_follow_if_match_if_none_match_and_if_unmodified_since() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let (file, absent, made) = (scratch.join("file"), scratch.join("absent"), scratch.join("made"));
    let (past, future) = ("Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    let unmet = |response: Response, name: &str| response.expect_error(412, "PRECONDITION_FAILED", name);
    for (head, with_file, without) in [
        ("If-None-Match: *".to_owned(), false, true),
        ("If-None-Match: \"tag\"".to_owned(), true, true),
        ("If-None-Match: W/\"a\", \"b\"".to_owned(), true, true),
        ("If-Match: *".to_owned(), true, false),
        ("If-Match: \"tag\"".to_owned(), false, false),
        (format!("If-Unmodified-Since: {past}"), false, true),
        (format!("If-Unmodified-Since: {future}"), true, true),
        ("If-Unmodified-Since: last week".to_owned(), true, true),
        (format!("If-Match: *\r\nIf-Unmodified-Since: {past}"), true, false),
        (format!("If-Modified-Since: {future}"), true, true),
        ("If-Match: *\r\nIf-None-Match: *".to_owned(), false, false),
    ] {
        let name = head.split(':').next().unwrap_or_default();
        let lines = format!("{head}\r\n");
        let put_it = |path: &Path| send(&daemon, "PUT", &files(path, ""), &lines, b"new");
        let remove = |path: &Path| send(&daemon, "DELETE", &files(path, ""), &lines, b"");
        let read = |path: &Path| send(&daemon, "GET", &files(path, ""), &lines, b"");
        put(&daemon, &file, "", b"old").expect(204);
        // The file exists.
        if with_file {
            assert_eq!(read(&file).body, b"old", "{head}");
            put_it(&file).expect(204);
            assert_eq!(fs::read(&file).expect("the file"), b"new", "{head}");
            remove(&file).expect(204);
            assert!(!file.exists(), "{head}");
        } else {
            let response = read(&file);
            if head.contains("If-None-Match: *") {
                assert_eq!((response.status, response.body.len(), response.header("content-length")), (304, 0, None));
            } else {
                unmet(response, "If-");
            }
            unmet(put_it(&file), "If-");
            unmet(remove(&file), "If-");
            assert_eq!(fs::read(&file).expect("the file"), b"old", "{head}");
        }
        // The file does not exist.
        read(&absent).expect_error(404, "NOT_FOUND", "absent");
        remove(&absent).expect_error(404, "NOT_FOUND", "absent");
        let new = made.join("new");
        let response = put_it(&new);
        if without {
            response.expect(204);
            assert_eq!(fs::read(&new).expect("the file"), b"new", "{head}");
            fs::remove_dir_all(&made).expect("remove the directory");
        } else {
            unmet(response, name);
            assert!(!made.exists(), "{head}: no directory was made");
        }
    }
    // IS_DIRECTORY takes precedence over the condition.
    send(&daemon, "GET", &files(&scratch, ""), "If-Match: \"x\"\r\n", b"").expect_error(400, "IS_DIRECTORY", "");
    send(&daemon, "PUT", &files(&scratch, ""), "If-None-Match: *\r\n", b"").expect_error(400, "IS_DIRECTORY", "");
}

/// Concurrent uploads of the same new file: one creates it, even if all have checked the condition before any is
/// complete.
#[test]
fn if_none_match_lets_exactly_one_of_eight_concurrent_uploads_create_the_file() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    for round in 0..10 {
        let file = scratch.join(format!("lock-{round}"));
        let headers = "If-None-Match: *\r\nExpect: 100-continue\r\nContent-Length: 2\r\n";
        let head = daemon.request_head("PUT", &files(&file, ""), headers);
        let mut clients: Vec<TcpStream> = (0..8).map(|_| daemon.connect()).collect();
        for client in &mut clients {
            client.write_all(head.as_bytes()).expect("the head");
            // The daemon sends 100 Continue once the upload has begun.
            let mut word = [0; 25];
            client.read_exact(&mut word).expect("a response");
            assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let ends: Vec<_> = clients
                .into_iter()
                .zip(10..)
                .map(|(mut client, number)| {
                    scope.spawn(move || {
                        client.write_all(format!("{number}").as_bytes()).expect("the body");
                        (ResponseStream::read(client).expect("a response").status, number)
                    })
                })
                .collect();
            let ends: Vec<(u16, i32)> = ends.into_iter().map(|end| end.join().expect("a client")).collect();
            let winner = ends.iter().find(|(status, _)| *status == 204).expect("one of them").1;
            assert_eq!(fs::read_to_string(&file).expect("the file"), winner.to_string());
            ends.into_iter().map(|(status, _)| status).collect()
        });
        let made = statuses.iter().filter(|status| **status == 204).count();
        let refused = statuses.iter().filter(|status| **status == 412).count();
        assert_eq!((made, refused), (1, 7), "{statuses:?}");
    }
    assert_eq!(names(&daemon, &scratch).len(), 10, "nothing else is left");
}

#[test]
fn invalid_paths_directories_and_special_files_are_refused_without_a_change() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let at = |name: &str| scratch.join(name);
    fs::write(at("a..b"), "dots").expect("write the file");
    fs::write(at("..."), "dots").expect("write the file");
    fs::create_dir(at("dir")).expect("create a directory");
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("create a FIFO");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    symlink("loop", at("loop")).expect("create a symbolic link");
    let raw =
        |method: &str, target: &str| daemon.open(method, target, "Content-Length: 0\r\n", b"").into_response(target);
    for method in ["GET", "PUT", "DELETE"] {
        for (query, status, code, needle) in [
            ("", 400, "INVALID_REQUEST", "`path`"),
            ("?", 400, "INVALID_REQUEST", "`path`"),
            ("?Path=/x", 400, "INVALID_REQUEST", "`path`"),
            ("?path", 400, "INVALID_REQUEST", "empty"),
            ("?path=", 400, "INVALID_REQUEST", "empty"),
            ("?path=%00", 400, "INVALID_REQUEST", "NUL"),
            ("?path=/etc/passwd%00.txt", 400, "INVALID_REQUEST", "NUL"),
            ("?path=..", 403, "PATH_TRAVERSAL", ".."),
            ("?path=/etc/../etc/passwd", 403, "PATH_TRAVERSAL", ".."),
            ("?path=%2e%2e/x", 403, "PATH_TRAVERSAL", ".."),
            ("?path=a/..", 403, "PATH_TRAVERSAL", ".."),
            ("?path=..%2Fx", 403, "PATH_TRAVERSAL", ".."),
        ] {
            raw(method, &format!("/files{query}")).expect_error(status, code, needle);
        }
        let denied = |response: Response, code: &str, name: &str| response.expect_error(400, code, name);
        denied(raw(method, &files(at("dir"), "")), "IS_DIRECTORY", "dir");
        denied(raw(method, &files("/", "")), "IS_DIRECTORY", "/");
        denied(raw(method, &files(at("a..b/x"), "")), "NOT_A_DIRECTORY", "a..b");
        denied(raw(method, &files(at(&"x".repeat(256)), "")), "INVALID_REQUEST", "path");
    }
    for method in ["GET", "PUT"] {
        for special in [at("fifo"), at("socket"), "/dev/zero".into(), "/dev/null".into(), "/dev/full".into()] {
            raw(method, &files(&special, "")).expect_error(400, "NOT_A_REGULAR_FILE", &special.to_string_lossy());
        }
        raw(method, &files(at("loop"), "")).expect_error(400, "INVALID_REQUEST", "link");
    }
    for absent in [at("absent"), at("absent/x")] {
        raw("GET", &files(&absent, "")).expect_error(404, "NOT_FOUND", "absent");
        raw("DELETE", &files(&absent, "")).expect_error(404, "NOT_FOUND", "absent");
        list(&daemon, &absent, "").expect_error(404, "NOT_FOUND", "absent");
    }
    for no_directory in ["a..b", "fifo", "socket"] {
        list(&daemon, at(no_directory), "").expect_error(400, "NOT_A_DIRECTORY", no_directory);
    }
    for (query, status, code) in [("", 400, "INVALID_REQUEST"), ("?path=..", 403, "PATH_TRAVERSAL")] {
        daemon.get(&format!("/files/list{query}")).expect_error(status, code, "path");
    }
    for (method, path, allowed) in [("POST", "/files", "GET, HEAD, PUT, DELETE"), ("PUT", "/files/list", "GET, HEAD")] {
        let response = raw(method, &format!("{path}?path=/x"));
        response.expect_error(405, "METHOD_NOT_ALLOWED", "");
        assert_eq!(response.header("allow"), Some(allowed));
    }
    assert_eq!(get(&daemon, at("a..b"), "").body, b"dots");
    assert_eq!(get(&daemon, at("..."), "").body, b"dots");
    let mut left = names(&daemon, &scratch);
    left.sort();
    assert_eq!(left, ["...", "a..b", "dir", "fifo", "loop", "socket"], "nothing was made or removed");
    // A client that expects 100 Continue gets the error before it sends the body.
    let response = daemon.open("PUT", &files(at("dir"), ""), "Expect: 100-continue\r\nContent-Length: 99\r\n", b"");
    response.into_response("an upload to a directory").expect_error(400, "IS_DIRECTORY", "dir");
}

#[test]
fn a_directory_of_100000_entries_is_listed_within_1_s_of_cpu_time() {
    let daemon = start_daemon();
    let dir = daemon.scratch().join("many");
    fs::create_dir_all(dir.join("zz-dir")).expect("create a directory");
    let name = |number: usize| format!("entry-{number:06}");
    (0..100_000).for_each(|number| drop(fs::File::create(dir.join(name(number))).expect("create a file")));
    symlink("zz-dir", dir.join("zy-link")).expect("create a symbolic link");
    let mut times = Vec::new();
    let mut listing = Value::Null;
    for _ in 0..3 {
        // CPU time: wall time depends on the load of the machine, and is measured by the benchmark.
        let before = procfs::cpu_time(daemon.pid);
        let mut body = daemon.open("GET", &format!("/files/list?path={}", encoded(&dir)), "", b"").expect_status(200);
        let mut text = Vec::new();
        body.read_to_end(&mut text).expect("all of it");
        times.push(procfs::cpu_time(daemon.pid) - before);
        listing = serde_json::from_slice(&text).expect("JSON");
    }
    assert!(times.iter().any(|time| *time <= Duration::from_secs(1)), "{times:?}");
    assert_eq!(listing["path"], dir.to_str().expect("text"));
    assert_eq!(listing.get("truncated"), None);
    let entries = listing["entries"].as_array().expect("entries");
    let listed = entries.iter().map(|entry| entry["name"].as_str().unwrap_or_default().to_owned());
    assert!(listed.eq(["zy-link".to_owned(), "zz-dir".to_owned()].into_iter().chain((0..100_000).map(name))));
    assert!(entries[..2].iter().all(|entry| entry["is_dir"] == true && entry["size"].is_null()));
    let file = &entries[2];
    assert!(file["is_dir"] == false && file["size"] == 0 && file["modified_at"].as_u64() > Some(1_500_000_000_000));
}

#[test]
fn a_download_of_a_file_that_shrinks_ends_the_connection() {
    let daemon = start_daemon();
    let file = daemon.scratch().join("file");
    let length = 64 << 20;
    fs::File::create(&file).and_then(|file| file.set_len(length)).expect("create a file");
    let mut response = daemon.open("GET", &files(&file, ""), "", b"").expect_status(200);
    assert_eq!(response.header("content-length"), Some(&*length.to_string()));
    fs::OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(100)).expect("shorten the file");
    let mut body = Vec::new();
    let error = response.read_to_end(&mut body).expect_err("the body is not padded");
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!((body.len() as u64) < length);
    assert_eq!(get(&daemon, &file, "").body.len(), 100);
}
