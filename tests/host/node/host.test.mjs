// The public npm client, unmodified, against the real tl-host. tests/host/python/test_npm.py starts it and runs this file;
// the environment is the one that tl-host prints, and the directory in which npm has installed the client.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

const { TL_TEST_PACKAGES } = process.env;
const { RemoteAPIError, Sandbox, SandboxClient } = createRequire(`${TL_TEST_PACKAGES}/`)("tensorlake");

const client = new SandboxClient({}, true);

const failsWith = (status, part) => (error) =>
  error instanceof RemoteAPIError && error.statusCode === status && error.message.includes(part);

test("create, run and terminate", async () => {
  const sandbox = await Sandbox.create({ cpus: 0.5, memoryMb: 256 });
  try {
    const result = await sandbox.run("sh", { args: ["-c", "echo hello; exit 3"] });
    assert.deepEqual([result.stdout, result.exitCode], ["hello", 3]);
    const info = await client.get(sandbox.sandboxId);
    assert.equal(info.status, "running");
    assert.deepEqual([info.resources.cpus, info.resources.memoryMb], [0.5, 256]);
  } finally {
    await sandbox.terminate();
  }
  assert.equal((await client.get(sandbox.sandboxId)).status, "terminated");
});

test("a named sandbox is listed, renamed, suspended, resumed and found", async () => {
  const sandbox = await Sandbox.create({ name: "node" });
  await client.suspend("node");
  assert.equal((await client.get("node")).status, "suspended");
  await client.resume("node");
  assert.equal((await client.update("node", { name: "node-2" })).name, "node-2");
  const names = (await client.list()).filter((info) => info.status === "running").map((info) => info.name);
  assert.deepEqual(names, ["node-2"]);
  await client.delete("node-2");
  await sandbox.close();
});

test("snapshot and restore", async () => {
  const sandbox = await Sandbox.create({ name: "source" });
  await sandbox.writeFile("/tmp/file", Buffer.from("kept"));
  const snapshot = await client.snapshotAndWait("source");
  assert.equal(snapshot.status, "completed");
  const restored = await Sandbox.create({ snapshotId: snapshot.snapshotId });
  assert.equal(Buffer.from(await restored.readFile("/tmp/file")).toString(), "kept");
  await restored.terminate();
  await sandbox.terminate();
  await client.deleteSnapshot(snapshot.snapshotId);
});

test("errors have a status and a sentence", async () => {
  await assert.rejects(Sandbox.create({ image: "no-such-image" }), failsWith(404, "no-such-image"));
  await assert.rejects(Sandbox.create({ name: "Bad_Name" }), failsWith(400, "`name`"));
  await assert.rejects(client.delete("gone"));
});
