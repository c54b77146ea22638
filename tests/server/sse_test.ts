import { assertEquals } from "@std/assert";
import { test } from "node:test";
import { eventStream, frame, type ServerSentEvent } from "../../lib/server/sse.ts";

/** One event, then an error where there is one. */
async function* one(error: Error | undefined): AsyncGenerator<ServerSentEvent> {
  yield await Promise.resolve({ data: "1" });
  if (error) throw error;
}

test("an event over the wire, with and without a name", () => {
  assertEquals(frame({ data: "{}" }), "data: {}\n\n");
  assertEquals(frame({ event: "delta", data: "{}" }), "event: delta\ndata: {}\n\n");
});

test("a stream's end is told once, with its error where there is one", async () => {
  for (const error of [undefined, new Error("broken")]) {
    const ends: unknown[] = [];
    const response = eventStream(one(error), () => ends.push("left"), (error) => ends.push(error));
    assertEquals(response.headers.get("content-type"), "text/event-stream; charset=utf-8");
    assertEquals(await response.text(), "data: 1\n\n");
    assertEquals(ends, [error]);
  }
});

test("a client that leaves: the source is told, read to its end, and no more is sent", async () => {
  const ends: unknown[] = [], gone = Promise.withResolvers<void>();
  const done = Promise.withResolvers<void>();
  async function* events() {
    yield { data: "1" };
    await gone.promise;
    yield { data: "2" };
  }
  const response = eventStream(events(), () => {
    ends.push("left");
    gone.resolve();
  }, (error) => {
    ends.push(error);
    done.resolve();
  });
  const reader = response.body!.getReader();
  assertEquals(new TextDecoder().decode((await reader.read()).value), "data: 1\n\n");
  await reader.cancel();
  await done.promise;
  assertEquals(ends, ["left", undefined]);
});

test("an event is taken once the one before it was read", async () => {
  let taken = 0;
  async function* events() {
    for (; taken < 5; taken++) yield await Promise.resolve({ data: `${taken}` });
  }
  const reader = eventStream(events(), () => {}, () => {}).body!.getReader();
  for (let i = 0; i < 5; i++) {
    assertEquals(new TextDecoder().decode((await reader.read()).value), `data: ${i}\n\n`);
    await new Promise((resolve) => setTimeout(resolve, 5));
    assertEquals(taken, i);
  }
  assertEquals((await reader.read()).done, true);
});
