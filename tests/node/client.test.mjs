// The public npm client, unmodified, against the real daemon. tests/python/test_node.py starts the daemon and runs this
// file; the environment has the URL, the token and the directory in which npm has installed the client.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import net from "node:net";
import { after, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

const { TL_TEST_URL, TL_TEST_TOKEN, TL_TEST_PACKAGES } = process.env;
const { RemoteAPIError, Sandbox, StdinMode } = createRequire(`${TL_TEST_PACKAGES}/`)("tensorlake");

const connect = (apiKey) => Sandbox.connect({ sandboxId: "sbx-1", proxyUrl: TL_TEST_URL, apiKey });
const sandbox = await connect(TL_TEST_TOKEN);
after(() => sandbox.close());

// Waits until the condition returns a true value, and returns that.
async function until(what, condition) {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert.ok(Date.now() < deadline, `not within 60 s: ${what}`);
    await pause(10);
  }
}

async function lines(events) {
  const found = [];
  for await (const event of events) found.push(event.line);
  return found;
}

const ended = (pid) =>
  until("the process has ended", async () => {
    const process = await sandbox.getProcess(pid);
    return process.status !== "running" && process;
  });

const failsWith = (status) => (error) => error instanceof RemoteAPIError && error.statusCode === status;

test("a run returns output and exit code", async () => {
  const script = "echo out; echo err >&2; echo $GREETING; pwd; exit 7";
  const result = await sandbox.run("sh", { args: ["-c", script], env: { GREETING: "hello ünï" }, workingDir: "/usr" });
  assert.deepEqual([result.exitCode, result.stdout, result.stderr], [7, "out\nhello ünï\n/usr", "err"]);
});

test("a run returns all of a large output", async () => {
  const { stdout } = await sandbox.run("seq", { args: ["1", "20000"] });
  assert.deepEqual(stdout.split("\n").map(Number), Array.from({ length: 20000 }, (_, index) => index + 1));
});

test("a run ends at its timeout", async () => {
  const result = await sandbox.run("sh", { args: ["-c", "echo early; sleep 600"], timeout: 3 });
  assert.deepEqual([result.exitCode, result.stdout], [-9, "early"]);
});

test("errors have a status", async () => {
  await assert.rejects(sandbox.run("no-such-program"), failsWith(400));
  await assert.rejects(sandbox.getProcess(3999999), failsWith(404));
  const stranger = await connect("wrong");
  await assert.rejects(stranger.run("true"), failsWith(401));
  assert.equal((await stranger.health()).healthy, true);
  stranger.close();
});

test("a process is started, listed and followed to its end", async () => {
  const script = "for i in 1 2 3; do echo line $i; echo error $i >&2; done; exit 3";
  const { pid } = await sandbox.startProcess("sh", { args: ["-c", script] });
  assert.deepEqual(await lines(sandbox.followStdout(pid)), ["line 1", "line 2", "line 3"]);
  assert.deepEqual(await lines(sandbox.followStderr(pid)), ["error 1", "error 2", "error 3"]);
  assert.equal((await lines(sandbox.followOutput(pid))).length, 6);
  const process = await ended(pid);
  assert.deepEqual([process.status, process.exitCode], ["exited", 3]);
  assert.ok((await sandbox.listProcesses()).some((each) => each.pid === pid));
  assert.deepEqual((await sandbox.getStdout(pid)).lines, ["line 1", "line 2", "line 3"]);
});

test("stdin is written and closed", async () => {
  const { pid } = await sandbox.startProcess("cat", { stdinMode: StdinMode.PIPE });
  await sandbox.writeStdin(pid, Buffer.from("hello\nünï\n"));
  await sandbox.closeStdin(pid);
  assert.deepEqual(await lines(sandbox.followStdout(pid)), ["hello", "ünï"]);
  assert.equal((await ended(pid)).exitCode, 0);
});

test("signals and kill reach the process", async () => {
  const script = "trap 'echo got it; exit 4' USR1; echo up; while :; do sleep 0.02; done";
  const { pid } = await sandbox.startProcess("sh", { args: ["-c", script] });
  await until("the process is up", async () => (await sandbox.getStdout(pid)).lines.length === 1);
  await sandbox.sendSignal(pid, 10);
  assert.deepEqual(await lines(sandbox.followStdout(pid)), ["up", "got it"]);
  assert.equal((await ended(pid)).exitCode, 4);

  const sleep = await sandbox.startProcess("sleep", { args: ["600"] });
  await sandbox.killProcess(sleep.pid);
  const killed = await ended(sleep.pid);
  assert.deepEqual([killed.status, killed.signal], ["signaled", 9]);
});

test("a managed process is restarted by its name", async () => {
  const restart = { policy: "always", initialBackoffMs: 50 };
  const first = await sandbox.startProcess("sleep", { args: ["600"], name: "node service", restart });
  const second = await sandbox.restartProcess("node service");
  assert.ok(second.pid !== first.pid && second.managed.restartCount === 1, JSON.stringify(second));
  await sandbox.killProcess("node service");
  assert.equal((await ended("node service")).managed.status, "stopped");
});

test("files are written, read, listed and deleted", async () => {
  const content = Uint8Array.from({ length: 300_000 }, (_, index) => index % 251);
  await sandbox.writeFile("from-node/a file", content);
  assert.deepEqual(Buffer.from((await sandbox.readFile("from-node/a file"))), Buffer.from(content));
  const listed = (await sandbox.listDirectory("from-node")).entries;
  assert.deepEqual(listed.map((entry) => [entry.name, entry.isDir, entry.size]), [["a file", false, 300_000]]);
  await sandbox.deleteFile("from-node/a file");
  await assert.rejects(sandbox.readFile("from-node/a file"), failsWith(404));
});

test("a terminal takes input, is resized and reports its exit code", async () => {
  let screen = "";
  const onData = (data) => (screen += Buffer.from(data).toString());
  const script = "stty size; read line; stty size; echo got $line; exit 5";
  const pty = await sandbox.createPty({ command: "sh", args: ["-c", script], rows: 30, cols: 100, onData });
  await until("the first size", () => screen.includes("30 100"));
  await pty.resize(132, 43);
  await pty.sendInput("typed\n");
  assert.equal(await pty.wait(), 5);
  assert.ok(screen.includes("43 132") && screen.includes("got typed"), screen);

  const killed = await sandbox.createPty({ command: "sleep", args: ["600"] });
  // Expected before the kill: a promise that is rejected while nobody waits for it ends Node.
  const terminated = assert.rejects(killed.wait(), /terminated/);
  await killed.kill();
  await terminated;
});

test("a tunnel carries a connection both ways", async () => {
  const service = net.createServer((peer) => peer.pipe(peer));
  await new Promise((listening) => service.listen(0, "127.0.0.1", listening));
  const tunnel = await sandbox.createTunnel(service.address().port, { localPort: 0 });
  const peer = net.connect(tunnel.address().port, "127.0.0.1");
  const sent = Buffer.alloc(200_000, "tunnel ");
  peer.write(sent);
  let received = Buffer.alloc(0);
  for await (const piece of peer) {
    received = Buffer.concat([received, piece]);
    if (received.length >= sent.length) break;
  }
  assert.ok(received.equals(sent), `${received.length} bytes`);
  peer.destroy();
  await tunnel.close();
  service.close();
});
