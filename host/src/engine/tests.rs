//! The client against a real engine.

// Shared with the tests that drive tl-host.
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "../../../tests/host/podman.rs"]
mod podman;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime};

use super::{ContainerSpec, ContainerState, Engine, EngineError, EngineUrl};
use podman::{IMAGE, Podman, repository};

fn client(podman: &Podman) -> Engine {
    Engine::new(EngineUrl::Unix(podman.socket()))
}

fn sleeper(name: &str, label: &str) -> ContainerSpec {
    let words = ["/bin/sh", "-c", "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done"];
    ContainerSpec {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        command: words.map(str::to_owned).to_vec(),
        labels: vec![("tl-test".to_owned(), label.to_owned())],
        tmpfs: vec!["/run".to_owned()],
        hostname: Some(name.to_owned()),
        memory_bytes: Some(64 << 20),
        milli_cpus: Some(500),
        published_port: Some(9501),
        ..ContainerSpec::default()
    }
}

#[test]
fn a_container_from_its_creation_to_its_removal() {
    let Some(podman) = podman::podman() else { return };
    let engine = client(podman);
    let info = engine.info().unwrap();
    assert!(info.name.starts_with("Podman Engine ") && info.cpus > 0 && !info.is_rootless, "{info:?}");
    let label = ("tl-test", "life");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&secret, "secret").unwrap();
    let mut spec = sleeper("tl-life", label.1);
    spec.read_only_mounts = vec![(secret.path().to_owned(), "/run/of/it".to_owned())];
    let id = engine.create(&spec).unwrap();
    assert!(matches!(engine.create(&spec), Err(EngineError::Conflict(_))), "the name is taken");
    assert_eq!(engine.inspect(&id).unwrap().state, ContainerState::Created);
    engine.start(&id).unwrap();
    engine.start(&id).unwrap();
    let container = engine.inspect(&id).unwrap();
    assert_eq!((container.state, container.exit_code), (ContainerState::Running, None));
    assert!(container.address.is_some() && container.published_at.is_some(), "{container:?}");
    assert!(container.labels.contains(&("tl-test".to_owned(), "life".to_owned())), "{container:?}");
    assert_eq!(engine.list(label).unwrap(), (vec![container], vec![]));
    assert_eq!(podman.run(&["exec", "tl-life", "sh", "-c", "hostname; cat /run/of/it"]), "tl-life\nsecret");
    // Bit 13 is CAP_NET_RAW.
    let bounding = podman.run(&["exec", "tl-life", "sed", "-n", "s/^CapBnd:\t*//p", "/proc/1/status"]);
    assert_eq!(u64::from_str_radix(bounding.trim(), 16).unwrap() >> 13 & 1, 0, "{bounding}");
    assert_eq!(podman.run(&["inspect", "--format", "{{.HostConfig.LogConfig.Size}}", "tl-life"]), "10MB");
    engine.pause(&id).unwrap();
    assert!(matches!(engine.pause(&id), Err(EngineError::Conflict(_))));
    assert_eq!(engine.inspect(&id).unwrap().state, ContainerState::Paused);
    engine.unpause(&id).unwrap();
    assert!(matches!(engine.unpause(&id), Err(EngineError::Conflict(_))));
    let log = engine.logs_tail(&id, 5).unwrap();
    assert!(log.contains("out\n") && log.contains("err\n"), "{log:?}");
    engine.stop(&id, Duration::from_secs(20)).unwrap();
    engine.stop(&id, Duration::from_secs(20)).unwrap();
    let container = engine.inspect(&id).unwrap();
    assert_eq!((container.state, container.exit_code), (ContainerState::Exited, Some(3)));
    engine.remove(&id).unwrap();
    engine.remove(&id).unwrap();
    assert!(matches!(engine.inspect(&id), Err(EngineError::NotFound(_))));
    assert_eq!(engine.list(label).unwrap(), (vec![], vec![]));
}

#[test]
fn an_image_by_commit_and_by_import() {
    let Some(podman) = podman::podman() else { return };
    let engine = client(podman);
    let label = ("tl-test", "commit");
    let id = engine.create(&sleeper("tl-commit", label.1)).unwrap();
    engine.start(&id).unwrap();
    podman.run(&["exec", "tl-commit", "sh", "-c", "echo kept >/kept; echo lost >/run/lost"]);
    let labels = [("tl-test.of".to_owned(), "a value".to_owned())];
    let image_id = engine.commit(&id, "localhost/tl-committed", "one", &labels).unwrap();
    assert_eq!(engine.inspect(&id).unwrap().state, ContainerState::Running);
    let image = engine.image("localhost/tl-committed:one").unwrap();
    assert!(image.id.ends_with(&image_id) && image.labels.contains(&labels[0]), "{image:?} {image_id}");
    assert_eq!(image.architecture, engine.info().unwrap().architecture);
    assert_eq!(engine.images(("tl-test.of", "a value")).unwrap(), [image]);
    let mut spec = sleeper("tl-restored", label.1);
    spec.image = "localhost/tl-committed:one".to_owned();
    let restored = engine.create(&spec).unwrap();
    engine.start(&restored).unwrap();
    assert_eq!(podman.run(&["exec", "tl-restored", "sh", "-c", "cat /kept; ls /run"]), "kept");
    assert!(matches!(engine.remove_image("localhost/tl-committed:one"), Err(EngineError::Conflict(_))));
    for id in [&id, &restored] {
        engine.remove(id).unwrap();
    }
    engine.remove_image("localhost/tl-committed:one").unwrap();
    engine.remove_image("localhost/tl-committed:one").unwrap();
    assert!(matches!(engine.image("localhost/tl-committed:one"), Err(EngineError::NotFound(_))));

    let archive = File::open(repository().join(".cache/host/busybox.tar")).unwrap();
    let id = engine.import(archive, "localhost/tl-imported", "two").unwrap();
    assert_eq!(engine.image("localhost/tl-imported:two").unwrap().id, id);
    engine.remove_image("localhost/tl-imported:two").unwrap();
}

/// Fails after a few bytes.
struct Broken(usize);

impl io::Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("the disk is broken"));
        }
        self.0 -= 1;
        buffer.fill(0);
        Ok(buffer.len())
    }
}

#[test]
fn an_archive_that_cannot_be_read_is_not_the_engine_s_fault() {
    let Some(podman) = podman::podman() else { return };
    let result = client(podman).import(Broken(3), "localhost/tl-broken", "x");
    assert!(
        matches!(&result, Err(EngineError::Source(error)) if error.to_string() == "the disk is broken"),
        "{result:?}"
    );
}

#[test]
fn names_that_no_image_or_container_has() {
    let Some(podman) = podman::podman() else { return };
    let engine = client(podman);
    for name in ["", "nope", "localhost/nope:1", "../containers/json", "a b", "a?b=c", "a//b", "é", "a\nb", "/"] {
        let image = engine.image(name);
        assert!(matches!(image, Err(EngineError::NotFound(_))), "{name:?}: {image:?}");
        let spec = ContainerSpec { image: name.to_owned(), ..sleeper("tl-never", "never") };
        let created = engine.create(&spec);
        assert!(created.is_err(), "{name:?}: {created:?}");
    }
    for name in ["nope", "", "..", "a/b", "json"] {
        assert!(matches!(engine.inspect(name), Err(EngineError::NotFound(_))), "{name:?}");
    }
}

#[test]
fn a_network_is_made_once() {
    let Some(podman) = podman::podman() else { return };
    let engine = client(podman);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let engine = engine.clone();
            std::thread::spawn(move || engine.ensure_network("tl-test-internal", true))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    let network = podman.run(&["network", "ls", "--format", "{{.Name}}"]);
    assert_eq!(network.lines().filter(|line| *line == "tl-test-internal").count(), 1, "{network}");
    podman.run(&["network", "create", "tl-test-open"]);
    engine.ensure_network("tl-test-open", false).unwrap();
    let refused = engine.ensure_network("tl-test-open", true);
    assert!(matches!(refused, Err(EngineError::Conflict(_))), "{refused:?}");
    engine.remove_network("tl-test-open").unwrap();
    engine.remove_network("tl-test-internal").unwrap();
    engine.remove_network("tl-test-internal").unwrap();
}

#[test]
fn events_from_a_time_on_until_the_engine_is_gone() {
    // An engine of its own, because it is killed.
    if podman::podman().is_none() {
        return;
    }
    let podman = Podman::start(None);
    let engine = client(&podman);
    let since = SystemTime::now();
    let id = engine.create(&sleeper("tl-events", "events")).unwrap();
    engine.start(&id).unwrap();
    let mut events = engine.events(("tl-test", "events"), since);
    let mut next = |action: &str| loop {
        let event = events.next().unwrap().unwrap();
        assert_eq!((&event.container, event.name.as_str()), (&id, "tl-events"));
        if event.action == action {
            return event;
        }
    };
    next("start");
    engine.pause(&id).unwrap();
    next("pause");
    engine.unpause(&id).unwrap();
    next("unpause");
    engine.stop(&id, Duration::from_secs(20)).unwrap();
    assert_eq!(next("die").exit_code, Some(3));
    engine.remove(&id).unwrap();
    next("remove");
    podman.kill_service();
    let end = events.by_ref().last();
    assert!(matches!(end, Some(Err(EngineError::Unreachable { .. }))), "{end:?}");
    assert!(events.next().is_none());
    let error = engine.info().unwrap_err();
    assert!(matches!(error, EngineError::Unreachable { .. }), "{error}");
    podman.start_service();
    engine.info().unwrap();
}

#[test]
fn an_engine_that_does_not_answer_times_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let begin = Instant::now();
    let error = Engine::new(EngineUrl::Unix(path)).inspect("x").unwrap_err();
    assert!(matches!(error, EngineError::TimedOut(limit, _) if limit <= begin.elapsed()), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn an_engine_that_is_not_there_is_named() {
    let cases = [("unix:///nowhere.sock", "No such file or directory"), ("tcp://127.0.0.1:1", "Connection refused")];
    for (url, cause) in cases {
        let error = Engine::new(url.parse().unwrap()).info().unwrap_err().to_string();
        assert_eq!(error, format!("the engine at {url} cannot be reached: {cause}"));
    }
}

/// The stream of events has no time limit: an engine whose machine vanishes is found out by the kernel's probes.
#[test]
fn the_kernel_probes_an_engine_over_tcp() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let engine = Engine::new(EngineUrl::Tcp(addr.to_string()));
    let asking = std::thread::spawn(move || engine.info());
    let (stream, peer) = listener.accept().unwrap();
    let [local, remote] = [peer, addr].map(|addr| format!(":{:04X}", addr.port()));
    let deadline = Instant::now() + Duration::from_secs(9);
    let is_probed = || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_it = columns.len() > 5 && columns[1].ends_with(&local) && columns[2].ends_with(&remote);
            // 2 is the timer of the probes; its time is in hundredths of a second.
            let time = is_it.then(|| columns[5].strip_prefix("02:")).flatten();
            time.is_some_and(|time| u64::from_str_radix(time, 16).unwrap() <= 6100)
        })
    };
    while !is_probed() {
        assert!(Instant::now() < deadline, "the timer of the probes does not run");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(stream);
    assert!(matches!(asking.join().unwrap(), Err(EngineError::Unreachable { .. })));
}
