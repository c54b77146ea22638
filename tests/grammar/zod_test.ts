import { assert, assertThrows } from "@std/assert";
import { test } from "node:test";
import { z } from "zod";
import { json, SchemaError } from "../../lib/grammar/json_schema.ts";
import { byteGrammar, draw, passes } from "../support/grammar.ts";
import { Random } from "../support/random.ts";

const seed = Date.now() & 0xffff;

/** Schemas as `zodResponseFormat` sends them, each with a value that is valid. */
const types: Record<string, [z.ZodType, unknown]> = {
  string: [z.string(), "é\n"],
  "string.min.max": [z.string().min(2).max(5), "abc"],
  "string.length": [z.string().length(3), "abc"],
  "string.regex": [z.string().regex(/^[a-z]+\d{2}$/), "ab12"],
  "string.startsWith": [z.string().startsWith("ab"), "abc"],
  "string.endsWith": [z.string().endsWith("ab"), "cab"],
  "string.includes": [z.string().includes("ab"), "cabc"],
  email: [z.email(), "ada.l@example.org"],
  url: [z.url(), "https://example.org/a?b=c"],
  uuid: [z.uuid(), "01234567-89ab-4def-8123-456789abcdef"],
  cuid2: [z.cuid2(), "abc123"],
  ulid: [z.ulid(), "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
  nanoid: [z.nanoid(), "V1StGXR8_Z5jdHi6B-myT"],
  ipv4: [z.ipv4(), "192.168.0.1"],
  ipv6: [z.ipv6(), "fe80::1"],
  cidrv4: [z.cidrv4(), "10.0.0.0/8"],
  base64: [z.base64(), "YWJj"],
  datetime: [z.iso.datetime(), "2024-02-29T12:00:00Z"],
  date: [z.iso.date(), "2024-02-29"],
  duration: [z.iso.duration(), "P1DT2H"],
  number: [z.number(), -1.5],
  "number.positive": [z.number().positive(), 0.5],
  "number.nonnegative": [z.number().nonnegative(), 0],
  "number.min.max": [z.number().min(0.5).max(10), 9.75],
  "number.multipleOf": [z.number().multipleOf(0.25), 1.75],
  int: [z.int(), -42],
  boolean: [z.boolean(), true],
  null: [z.null(), null],
  literal: [z.literal(["a", 1, null]), 1],
  enum: [z.enum(["a", "b"]), "b"],
  nullable: [z.string().nullable(), null],
  array: [z.array(z.int()).min(1).max(3), [1, 2]],
  tuple: [z.tuple([z.string(), z.int()]), ["a", 1]],
  record: [z.record(z.string(), z.int()), { a: 1 }],
  "record of an enumeration": [z.record(z.enum(["a", "b"]), z.int()), { a: 1, b: 2 }],
  "record of a pattern": [z.record(z.string().regex(/^x-/), z.int()), { "x-a": 1 }],
  union: [z.union([z.string(), z.int()]), 3],
  discriminatedUnion: [
    z.discriminatedUnion("t", [
      z.object({ t: z.literal("a"), x: z.int() }),
      z.object({ t: z.literal("b"), y: z.string().optional() }),
    ]),
    { t: "b" },
  ],
  intersection: [z.intersection(z.object({ a: z.int() }), z.object({ b: z.string() })), { a: 1, b: "" }],
  "object with optional members": [z.object({ a: z.string(), b: z.int().optional() }), { a: "" }],
  looseObject: [z.looseObject({ a: z.int() }), { a: 1, more: [true] }],
  "object that holds itself": [
    z.object({
      value: z.int(),
      get next() {
        return z.lazy(() => node).nullable();
      },
    }),
    { value: 1, next: null },
  ],
  default: [z.string().default("x"), "y"],
  describe: [z.string().describe("what it is"), "y"],
  unknown: [z.unknown(), { a: [null] }],
};
const node: z.ZodType = z.object({ value: z.int(), next: z.lazy(() => z.union([node, z.null()])) });

for (const [name, [type, value]] of Object.entries(types)) {
  test(`zod, ${name}: a value passes, and what is drawn is parsed; seed ${seed}`, () => {
    const grammar = byteGrammar(json(z.toJSONSchema(type) as Record<string, unknown>));
    assert(passes(grammar, JSON.stringify(value)), JSON.stringify(value));
    const random = new Random(seed);
    for (let i = 0; i < 8; i++) {
      const text = draw(grammar, random, 300);
      if (text !== undefined) assert(type.safeParse(JSON.parse(text)).success, text);
    }
  });
}

test("zod, what has no JSON schema or cannot be exact is refused", () => {
  assertThrows(() => z.toJSONSchema(z.date()));
  assertThrows(() => json(z.toJSONSchema(z.never()) as Record<string, unknown>), SchemaError, "no value is valid");
});
