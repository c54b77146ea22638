import { assertEquals, assertRejects } from "@std/assert";
import { z } from "@hono/zod-openapi";
import { test } from "node:test";
import { depthOf, readBody } from "../../lib/server/body.ts";
import { ApiError } from "../../lib/server/error.ts";

const schema = z.looseObject({ name: z.string(), list: z.array(z.number()).optional() });

function request(body: BodyInit, headers: Record<string, string> = {}): Request {
  return new Request("http://localhost/", { method: "POST", body, headers, duplex: "half" } as RequestInit);
}

/** Status, code, field and the beginning of the message of what refuses a body. */
async function refusal(body: BodyInit, most = 1000, headers?: Record<string, string>): Promise<unknown[]> {
  const error = await assertRejects(
    () => readBody(request(body, headers), schema, most),
    ApiError,
  ) as unknown as ApiError;
  return [error.status, error.code, error.param, error.message.slice(0, 22)];
}

/** A body that comes in pieces, without its length. */
function pieces(count: number, size: number): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller): void {
      for (let i = 0; i < count; i++) controller.enqueue(new Uint8Array(size).fill(0x20));
      controller.close();
    },
  });
}

test("a body is what its schema makes of it, fields it does not name included", async () => {
  const body = '{"name":"a","list":[1,2],"more":{"x":[true]}}';
  assertEquals(await readBody(request(body), schema, body.length), { name: "a", list: [1, 2], more: { x: [true] } });
  assertEquals(await readBody(request('{"name":"é"}'), schema, 13), { name: "é" });
});

test("size comes before UTF-8, UTF-8 before depth, depth before JSON, JSON before the schema", async () => {
  const large = [413, "request_too_large", null, "the body has more than"];
  assertEquals(await refusal(Uint8Array.of(0xff, 0xff), 1), large);
  assertEquals(await refusal(Uint8Array.of(0x5b, 0xff), 2), [400, null, null, "the body is not UTF-8"]);
  assertEquals(await refusal("[".repeat(129)), [400, null, null, "the body is nested mor"]);
  assertEquals(await refusal("[".repeat(128)), [400, null, null, "the body is not JSON: "]);
  assertEquals((await refusal("5")).slice(0, 3), [400, null, null]);
  assertEquals((await refusal('{"name":"a","list":[1,"2"]}')).slice(0, 3), [400, null, "list.1"]);
});

test("a body is too large by what it says and by what comes", async () => {
  const large = [413, "request_too_large", null, "the body has more than"];
  assertEquals(await refusal("{}", 1000, { "content-length": "1001" }), large);
  assertEquals(await refusal(pieces(3, 400)), large);
  assertEquals((await refusal(pieces(2, 500)))[0], 400);
});

test("depth counts brackets outside strings", () => {
  for (
    const [text, depth] of [
      ["", 0],
      ["5", 0],
      ["[[],[[]]]", 3],
      ['{"a":{"b":[1]}}', 3],
      ['"[[["', 0],
      [
        '["\\"[[",["\\\\"]]',
        2,
      ],
      ["]]][", 0],
      ["[".repeat(1000), 1000],
    ] as const
  ) assertEquals(depthOf(text), depth, text.slice(0, 20));
});
