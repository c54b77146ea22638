import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { test } from "node:test";
import { Encoder } from "../../lib/engine/encoder.ts";
import { EncoderThread } from "../../lib/engine/encoder_thread.ts";
import { EngineError } from "../../lib/engine/request.ts";
import { readText } from "../../lib/calibration/mod.ts";
import { folder, tokenizer } from "../support/embedded.ts";

const encoder = new Encoder(tokenizer), source = readText(`${folder}/eval.txt`);

test("a text that fits is encoded as a whole, however long, and one that does not is not encoded to its end", () => {
  for (
    const text of ["The kernel", "=".repeat(20_000), " ".repeat(20_000), source.slice(0, 20_000), "é😀".repeat(500)]
  ) {
    const ids = tokenizer.encode(text);
    assertEquals(encoder.encode({ prompt: text }, ids.length), ids);
    assertEquals(encoder.encode({ prompt: text }, 8192), ids);
  }
  for (const text of ["=".repeat(660_000), "😀".repeat(330_000), "a".repeat(660_000), `${source}${source}`]) {
    const refused = assertThrows(() => encoder.encode({ prompt: text }, 2048), EngineError);
    assertEquals(refused.code, "context_length");
    // Found by the length alone, or in the first pieces that have more.
    const least = Number(/at least (\d+)/.exec(refused.message)![1]);
    assert(least > 2048 && (least < 4096 || text.length < 40 * least), refused.message);
  }
});

test("a thread encodes clients' prompts in turn; leaving takes one out of the queue", async () => {
  const thread = new EncoderThread({});
  try {
    const order: string[] = [], abort = new AbortController();
    const encode = (client: string, signal?: AbortSignal) =>
      thread.encode({ prompt: `The kernel of ${client}` }, 100, client, signal).then((
        ids,
      ) => (order.push(client), ids));
    const all = [...["a", "a", "a", "b", "b", "c"].map((client) => encode(client)), encode("d", abort.signal)];
    assertEquals(thread.pending, 7);
    abort.abort(new EngineError("cancelled", "left"));
    await assertRejects(() => all.pop()!, EngineError, "left");
    const ids = await Promise.all(all);
    assertEquals(ids[0], tokenizer.encode("The kernel of a"));
    assertEquals(order, ["a", "b", "c", "a", "b", "a"]);
    await assertRejects(
      () => thread.encode({ prompt: "word ".repeat(500) }, 100, "a"),
      EngineError,
      "context length is 100",
    );
    await assertRejects(
      () => thread.encode({ prompt: [{ role: "user", content: 5 }] }, 100, "a"),
      EngineError,
      "expected text",
    );
    assertEquals(thread.pending, 0);
  } finally {
    thread.close();
  }
  await assertRejects(() => thread.encode({ prompt: "a" }, 100, "a"), EngineError, "closed");
});

test("a prompt that takes too long ends alone, and its thread is begun anew", async () => {
  const thread = new EncoderThread({ limit: 0.2 });
  try {
    await thread.encode({ prompt: "warm" }, 100, "a");
    // Fits as far as pieces tell; its merges take seconds.
    const long = thread.encode({ prompt: "=".repeat(800_000) }, 1 << 20, "a"),
      next = thread.encode({ prompt: "b" }, 100, "b");
    await assertRejects(() => long, EngineError, "longer than 0.2 s");
    assertEquals(await next, tokenizer.encode("b"));
  } finally {
    thread.close();
  }
});

test("a tokenizer that cannot be read leaves nobody waiting", async () => {
  const thread = new EncoderThread({ model: "no/such/folder" });
  for (const moment of ["before it is known", "afterwards"]) {
    await assertRejects(() => thread.encode({ prompt: "a" }, 100, "a"), EngineError, "no/such/folder", moment);
  }
  assertEquals(thread.pending, 0);
  thread.close();
});
