import { assertEquals, assertRejects } from "@std/assert";
import { z } from "@hono/zod-openapi";
import { test } from "node:test";
import { readBody, shapeOf } from "../../lib/server/body.ts";
import { ApiError } from "../../lib/server/error.ts";

const schema = z.looseObject({ name: z.string(), list: z.array(z.number()).optional() });

function request(body: BodyInit, headers: Record<string, string> = {}): Request {
  const all = { "content-type": "application/json", ...headers };
  return new Request("http://localhost/", { method: "POST", body, headers: all, duplex: "half" } as RequestInit);
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

test("a body says that it is JSON", async () => {
  const said = (type: string) => refusal("{}", 1000, { "content-type": type });
  const refused = [415, "unsupported_media_type", null, "the body must be JSON "];
  for (
    const type of [
      "",
      "text/plain",
      "text/plain; application/json",
      "application/x-www-form-urlencoded",
      "application/jsonx",
    ]
  ) {
    assertEquals(await said(type), refused, type);
  }
  for (const type of ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]) {
    assertEquals((await said(type))[2], "name", type);
  }
});

test("long lists are of token ids, and come as they were sent; other values are counted", async () => {
  const ids = Array.from({ length: 100_000 }, (_, i) => i % 7), size = 1 << 22;
  const lists = z.looseObject({ list: z.union([z.array(z.number()), z.array(z.array(z.number()))]) });
  const sent = async (list: unknown) => await readBody(request(JSON.stringify({ list, more: [ids] })), lists, size);
  for (const list of [ids, [ids, [1, 2], ids.slice(5)], [], [3], Array(257).fill(0)]) {
    assertEquals(await sent(list), { list, more: [ids] } as never);
  }
  for (const wrong of ["x", -1, 1.5, null, 2 ** 31]) {
    const list = [...ids.slice(0, 500), wrong];
    assertEquals((await refusal(JSON.stringify({ list }), size)).slice(0, 3), [400, null, "list"]);
    assertEquals((await refusal(JSON.stringify({ list: [[1], list] }), size)).slice(0, 3), [400, null, "list.1"]);
  }
  const fields = Object.fromEntries(ids.slice(0, 20_000).map((_, i) => [i, 1]));
  for (const many of [fields, Array(20_000).fill("x"), Array(200).fill(Array(100).fill(["x"]))]) {
    assertEquals(await refusal(JSON.stringify({ name: "a", many }), size), [
      400,
      null,
      "many",
      "the body has more than",
    ]);
  }
  const free = { name: "a", tools: [{ function: { parameters: fields } }], form: { schema: fields } };
  assertEquals(await readBody(request(JSON.stringify(free)), schema, size), free);
});

test("fields are counted before they are parsed, wherever they stand", async () => {
  const body = (count: number) => `{"name":"a","tools":[{"parameters":{${Array(count).fill('"a:b":{}').join(",")}}}]}`;
  assertEquals(shapeOf(body(100)), { depth: 5, fields: 103 });
  assertEquals((await refusal(body(50_000), 1 << 22))[3], "the body has more than");
  assertEquals(Object.keys(await readBody(request(body(49_000)), schema, 1 << 22)), ["name", "tools"]);
});

test("a body that breaks off is refused as one", async () => {
  const broken = new ReadableStream({
    start(controller): void {
      controller.enqueue(new TextEncoder().encode('{"na'));
      controller.error(new Error("connection reset"));
    },
  });
  assertEquals(await refusal(broken), [400, null, null, "the body ended before "]);
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
  ) assertEquals(shapeOf(text).depth, depth, text.slice(0, 20));
});
