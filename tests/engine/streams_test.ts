import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import { EngineError, type GenerationEvent } from "../../lib/engine/request.ts";
import { Stream, Streams } from "../../lib/engine/streams.ts";

const text = (length: number): GenerationEvent => ({
  type: "text",
  choice: 0,
  text: "x".repeat(length),
  tokens: [],
  count: 1,
});

test("a client alone may have all places, and keeps none out who has less than an equal share", () => {
  const streams = new Streams(), ids: number[] = [];
  const open = (client: string, places: number) => void ids.push(streams.open("vq2", client, places, 80).id);
  open("a", 64);
  open("a", 16);
  assertThrows(() => open("a", 1), EngineError, "80 answers are running or waiting, 80 of them yours");
  for (let i = 0; i < 40; i++) open("b", 1);
  assertThrows(() => open("b", 1), EngineError, "40 of them yours");
  for (let i = 0; i < 26; i++) open("c", 1);
  assertThrows(() => open("c", 1), EngineError, "26 of them yours");
  // What is given back can be taken again; another cache has places of its own.
  streams.close(ids[0]);
  assertThrows(() => open("b", 1), EngineError);
  open("a", 10);
  streams.open("bf16", "a", 80, 80);
});

test("places are bounded, however many clients come", () => {
  const streams = new Streams();
  let taken = 0;
  for (let client = 0; client < 300; client++) {
    try {
      for (;;) {
        streams.open("vq2", `${client}`, 1, 80);
        taken++;
      }
    } catch (error) {
      assertEquals((error as EngineError).code, "queue_full");
    }
  }
  assert(taken < 6 * 80, `${taken}`);
});

test("events come in their order, and a reader that does not read is left with an error", async () => {
  const stream = new Stream("vq2", "a", 1), read = stream.next();
  assert(stream.push(text(5)));
  assertEquals(await read, text(5));
  for (let i = 0; i < 3; i++) assert(stream.push(text(1 << 20)));
  assertEquals(stream.push(text(1 << 20)), false);
  // What comes until the row is gone is dropped.
  assert(stream.push(text(1)));
  await assertRejects(() => stream.next(), EngineError, "8388608 bytes of the answer unread");
});

test("one event larger than the bound is read, and log-probabilities count", async () => {
  const stream = new Stream("vq2", "a", 1);
  assert(stream.push(text(10 << 20)));
  assertEquals((await stream.next()).type, "text");
  const token = { id: 1, text: "x", bytes: [1], logprob: 0 }, top = Array.from({ length: 20 }, () => token);
  let pushed = 0;
  while (stream.push({ type: "text", choice: 0, text: "x", tokens: [{ ...token, top }], count: 1 })) pushed++;
  assert(pushed > 1000 && pushed < 8000, `${pushed}`);
});

test("a signal ends the waiting for an event", async () => {
  const stream = new Stream("vq2", "a", 1), abort = new AbortController();
  const read = stream.next(abort.signal);
  abort.abort();
  stream.wake();
  await assertRejects(() => read, EngineError, "cancelled");
});
