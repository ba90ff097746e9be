//! Measures throughput: `cargo test --release --lib -- --ignored --nocapture figures`, with TMPDIR on a tmpfs.

use std::io::Write;
use std::time::Instant;

use super::*;

#[test]
#[ignore = "measures"]
fn figures() {
    let chunk: Vec<u8> = (0..65_536).map(|i| if i % 62 == 61 { b'\n' } else { b'x' }).collect();
    let total = 2048 * MIB as usize;
    let rate = |bytes: usize, since: Instant| bytes as f64 / since.elapsed().as_secs_f64() / 1e6;

    let (dir, store) = store(256 * MIB, 1024 * MIB, |_| {});
    for unit in 10..14 {
        let mut plain = std::fs::File::create(dir.path().join("plain")).unwrap();
        let since = Instant::now();
        (0..3500).for_each(|_| plain.write_all(&chunk).unwrap());
        println!("plain write of 64 KiB chunks: {:.0} MB/s", rate(3500 * 65_536, since));
        std::fs::remove_file(dir.path().join("plain")).unwrap();
        drop(plain);
        let log = store.create(UnitId(unit));
        let since = Instant::now();
        (0..3500).for_each(|_| log.append(1, OUT, &chunk));
        println!("append of 64 KiB chunks: {:.0} MB/s", rate(3500 * 65_536, since));
    }
    let log = store.create(UnitId(1));
    let since = Instant::now();
    (0..total / 65_536).for_each(|_| log.append(1, OUT, &chunk));
    println!("the same while the oldest is dropped: {:.0} MB/s", rate(total, since));

    let since = Instant::now();
    let mut follower = log.follow(View::Combined, StartAt::Beginning, waker());
    let bytes: usize = std::iter::from_fn(|| follower.try_next())
        .map(|item| if let Item::Line(line, _) = item { line.text.len() + 1 } else { 0 })
        .sum();
    println!("following lines of 62 bytes: {:.0} MB/s", rate(bytes, since));
    let since = Instant::now();
    let bytes: usize = log.lines(View::Combined, None).map(|line| line.text.len() + 1).sum();
    println!("listing them: {:.0} MB/s", rate(bytes, since));
    let since = Instant::now();
    let bytes = std::io::copy(&mut log.raw(View::Stdout, None).unwrap(), &mut std::io::sink()).unwrap() as usize;
    println!("raw: {:.0} MB/s", rate(bytes, since));
    let since = Instant::now();
    assert_eq!(log.lines(View::Combined, Some(100)).count(), 100);
    println!("tail=100 of {} MB: {:?}", bytes / 1_000_000, since.elapsed());

    let small = store.create(UnitId(2));
    let since = Instant::now();
    (0..1_000_000).for_each(|_| small.append(1, OUT, &chunk[..62]));
    println!("append of 62-byte records: {:.0} ns each", since.elapsed().as_nanos() as f64 / 1e6);
}
