import { assert, assertStringIncludes, assertThrows } from "@std/assert";
import { test } from "node:test";
import { json } from "../../lib/grammar/json_schema.ts";
import { accepts, byteGrammar, draw, type Schema } from "../support/grammar.ts";
import { Random } from "../support/random.ts";

const seed = Date.now() & 0xffff;
const node = { type: "integer" };

for (
  const [name, schema, yes, no] of [
    ["siblings of $ref", { $ref: "#/$defs/N", minimum: 5, $defs: { N: node } }, ["5", "12"], ["4", "-6", '"x"']],
    [
      "type beside anyOf",
      { type: "string", anyOf: [{ type: "integer" }, { type: "string", maxLength: 3 }] },
      ['"abc"'],
      [
        "5",
        '"abcd"',
      ],
    ],
    ["siblings of const", { const: 5, type: ["integer", "string"], maximum: 7 }, ["5"], ["6"]],
    [
      "enum and its siblings",
      { enum: ["a", "bcd", 1, 9, null], type: ["string", "integer"], maxLength: 2, minimum: 3 },
      [
        '"a"',
        "9",
      ],
      ['"bcd"', "1", "null"],
    ],
    [
      "oneOf of overlapping types",
      { oneOf: [{ type: "integer" }, { type: "number", minimum: 2 }] },
      ["1", "-3", "2.5"],
      [
        "2",
        "3",
      ],
    ],
    [
      "oneOf by a member",
      {
        oneOf: ["a", "b"].map((kind) => ({
          type: "object",
          properties: { kind: { const: kind }, [kind]: node },
          required: ["kind"],
        })),
      },
      ['{"kind":"a","a":1}', '{"kind":"b","b":1}'],
      ['{"kind":"a","b":1}', '{"kind":"c"}'],
    ],
    [
      "oneOf of required members",
      {
        type: "object",
        properties: { a: node, b: node },
        oneOf: [{ required: ["a"] }, { required: ["b"] }],
      },
      ['{"a":1}', '{"b":1}'],
      ['{"a":1,"b":1}', "{}"],
    ],
    [
      "a discriminator is an annotation",
      {
        discriminator: { propertyName: "t", mapping: { a: "#/$defs/A" } },
        oneOf: [{ $ref: "#/$defs/A" }, { $ref: "#/$defs/B" }],
        $defs: {
          A: { type: "object", properties: { t: { const: "a" } }, required: ["t"] },
          B: { type: "object", properties: { t: { const: "b" } }, required: ["t"] },
        },
      },
      ['{"t":"a"}', '{"t":"b"}'],
      ['{"t":"c"}'],
    ],
    ["$anchor is not the root", {
      type: "array",
      items: { $ref: "#num" },
      $defs: { n: { $anchor: "num", type: "integer" } },
    }, [
      "[1]",
    ], ["[[1]]", '["a"]']],
    [
      "$id is what references are relative to",
      {
        $id: "https://a.example/root.json",
        type: "array",
        items: { $ref: "item.json" },
        $defs: { item: { $id: "item.json", $ref: "#/$defs/x", $defs: { x: { type: "boolean" } } } },
      },
      ["[true]"],
      ["[1]"],
    ],
    [
      "references into lists and members",
      {
        type: "object",
        properties: { a: { anyOf: [{ type: "integer" }, { type: "null" }] }, b: { $ref: "#/properties/a/anyOf/0" } },
        required: ["a", "b"],
        additionalProperties: false,
      },
      ['{"a":null,"b":2}'],
      ['{"a":null,"b":null}'],
    ],
    ["names with ~, / and %", { $ref: "#/$defs/a~1b~0c%25d", $defs: { "a/b~c%d": node } }, ["1"], ["true"]],
    ["a schema false in properties", { type: "object", properties: { a: false, b: node } }, ['{"b":1}', "{}"], [
      '{"a":1}',
      '{"a":1,"b":1}',
    ]],
    [
      "allOf of several",
      {
        allOf: [
          { type: "object", properties: { a: node }, required: ["a"] },
          { properties: { a: { minimum: 3 }, b: { type: "null" } }, additionalProperties: false },
        ],
      },
      ['{"a":3}', '{"a":4,"b":null}'],
      ['{"a":2}', '{"b":null}', '{"a":3,"c":1}'],
    ],
    [
      "booleans as exclusive bounds",
      { type: "integer", minimum: 3, exclusiveMinimum: true, maximum: 5, exclusiveMaximum: true },
      ["4"],
      [
        "3",
        "5",
      ],
    ],
    ["bounds of numbers", { type: "number", minimum: -0.25, exclusiveMaximum: 1.5 }, ["-0.25", "0", "1.49", "1"], [
      "-0.26",
      "1.5",
      "2",
      "1e1",
    ]],
    ["multiples", { type: "number", multipleOf: 0.05, minimum: 0 }, ["0", "0.05", "12.35", "3"], [
      "0.04",
      "-0.05",
      "0.051",
    ]],
    ["names by a pattern", { type: "object", patternProperties: { "^x": node, "y$": { minimum: 5 } } }, [
      '{"xa":1}',
      '{"xy":5}',
    ], [
      '{"xa":null}',
      '{"xy":4}',
    ]],
    [
      "names by a pattern beside named ones",
      {
        type: "object",
        properties: { xa: { maximum: 9 } },
        patternProperties: { "^x": node },
        additionalProperties: { type: "null" },
      },
      ['{"xa":9,"xb":10,"z":null}'],
      ['{"xa":10}', '{"z":1}', '{"xa":1.5}'],
    ],
    ["propertyNames", {
      type: "object",
      propertyNames: { pattern: "^[a-z]+$", maxLength: 2 },
      additionalProperties: node,
    }, [
      '{"ab":1,"c":2}',
    ], ['{"abc":1}', '{"A":1}']],
    [
      "propertyNames of an enumeration",
      {
        type: "object",
        propertyNames: { enum: ["a", "b"] },
        additionalProperties: node,
        required: ["a"],
      },
      ['{"a":1}', '{"a":1,"b":2}'],
      ['{"b":2}', '{"a":1,"c":2}'],
    ],
    [
      "minProperties and maxProperties",
      {
        type: "object",
        properties: { a: node, b: node, c: node },
        minProperties: 1,
        maxProperties: 2,
      },
      ['{"a":1}', '{"b":1,"c":1}'],
      ["{}", '{"a":1,"b":1,"c":1}'],
    ],
    ["a map with a member at least", { type: "object", additionalProperties: node, minProperties: 1 }, ['{"a":1}'], [
      "{}",
    ]],
    [
      "uniqueItems of an enumeration",
      { type: "array", items: { enum: ["a", "b", 1] }, uniqueItems: true, minItems: 1 },
      [
        '["b","a"]',
        "[1]",
      ],
      ["[]", '["a","a"]', '["a","b","a"]'],
    ],
    ["contains", { type: "array", items: node, contains: { minimum: 5 }, minItems: 2 }, ["[1,5]", "[7, 1, 2]"], [
      "[5]",
      "[1,2]",
    ]],
    [
      "contains at most",
      { type: "array", items: node, contains: { minimum: 5 }, maxContains: 1 },
      ["[1,5]", "[5,1,1]"],
      [
        "[5,6]",
        "[1]",
      ],
    ],
    ["prefixItems without items", { type: "array", prefixItems: [node, { type: "null" }], minItems: 1, maxItems: 3 }, [
      "[1]",
      "[1,null]",
      '[1,null,"x"]',
    ], ["[]", "[null]", "[1,1]"]],
    ["items as a list", { type: "array", items: [node], additionalItems: { type: "null" } }, ["[1,null,null]", "[]"], [
      "[1,1]",
    ]],
    ["not of a type", { not: { type: ["string", "object"] } }, ["1", "null", "[]"], ['"a"', "{}"]],
    ["not of a member", { type: "object", properties: { a: node, b: node }, not: { required: ["b"] } }, [
      '{"a":1}',
      "{}",
    ], [
      '{"a":1,"b":2}',
    ]],
    ["not of an enumeration", { type: "string", not: { enum: ["ab", "c"] } }, ['"a"', '"abc"', '""'], ['"ab"', '"c"']],
    ["not of a number", { type: "integer", minimum: 0, not: { const: 7 } }, ["6", "70", "8"], ["7"]],
    ["not of a pattern", { type: "string", not: { pattern: "b" } }, ['"a"'], ['"abc"']],
    [
      "if, then and else",
      {
        type: "object",
        properties: { kind: { enum: ["a", "b"] }, x: node },
        required: ["kind"],
        if: { properties: { kind: { const: "a" } } },
        then: { required: ["x"] },
        else: { properties: { x: false } },
      },
      ['{"kind":"a","x":1}', '{"kind":"b"}'],
      ['{"kind":"a"}', '{"kind":"b","x":1}'],
    ],
    ["dependentRequired", { type: "object", properties: { a: node, b: node }, dependentRequired: { a: ["b"] } }, [
      '{"b":1}',
      '{"a":1,"b":1}',
      "{}",
    ], ['{"a":1}']],
    [
      "dependencies of both kinds",
      {
        type: "object",
        properties: { a: node, b: node, c: node },
        dependencies: { a: ["b"], c: { properties: { a: false } } },
      },
      ['{"c":1}', '{"a":1,"b":1}'],
      ['{"a":1}', '{"a":1,"b":1,"c":1}'],
    ],
    [
      "unevaluatedProperties",
      {
        type: "object",
        allOf: [{ properties: { a: node } }, { properties: { b: node } }],
        unevaluatedProperties: false,
      },
      ['{"a":1,"b":1}'],
      ['{"c":1}'],
    ],
    [
      "unknown keywords say nothing",
      { type: "integer", "x-order": 3, nullable: true, markdownDescription: "", kind: {} },
      ["1"],
      [
        "null",
      ],
    ],
    ["types that are named twice", { type: ["integer", "integer", "number"] }, ["1", "1.5"], ["true"]],
    ["a keyword means its type", { properties: { a: node } }, ["{}", '{"a":1}'], ["1", "[]", '{"a":"x"}']],
  ] as [string, Schema, string[], string[]][]
) {
  test(`keywords, ${name}: what is valid passes, nothing else does, drawn texts end; seed ${seed}`, () => {
    for (const text of yes) assert(accepts(schema, text), `${text} is refused`);
    for (const text of no) assert(!accepts(schema, text), `${text} is let through`);
    const random = new Random(seed), grammar = byteGrammar(json(schema));
    for (let i = 0; i < 10; i++) {
      const text = draw(grammar, random);
      if (text !== undefined) JSON.parse(text);
    }
  });
}

for (
  const [format, yes, no] of [
    ["date-time", ["2024-02-29T23:59:59Z", "2023-01-31T00:00:00.5+01:30"], [
      "2023-02-29T00:00:00Z",
      "2023-01-01",
      "2023-01-01T24:00:00Z",
    ]],
    ["date", ["2000-02-29", "1999-12-31"], ["1900-02-29", "2023-04-31", "23-01-01"]],
    ["time", ["00:00:00Z", "23:59:59.123-05:00"], ["24:00:00Z", "12:00", "12:00:00"]],
    ["duration", ["P1Y2M3DT4H5M6S", "PT1H", "P4W"], ["P", "PT", "P1Y1D", "1D", "P1W1D"]],
    ["email", ["a.b+c@d-e.example"], ["a", "a@b@c.d", "a..b@c.de", "a@-b.de"]],
    ["hostname", ["a", "a-b.example"], ["-a", "a-", "a_b", "a..b", ""]],
    ["ipv4", ["0.0.0.0", "255.1.20.199"], ["256.1.1.1", "01.1.1.1", "1.1.1"]],
    ["ipv6", ["::", "::1", "1:2:3:4:5:6:7:8", "fe80::1:2"], ["1:2", ":::", "1::2::3", "12345::", "1:2:3:4:5:6:7:8:9"]],
    ["uuid", ["01234567-89ab-CDEF-0123-456789abcdef"], [
      "0123456789abcdef0123456789abcdef",
      "g1234567-89ab-cdef-0123-456789abcdef",
    ]],
    ["uri", ["https://a.example:80/b?c=d#e", "mailto:a@b.example", "urn:x:y"], ["a", "//a/b", "http://a b", "http://"]],
  ] as [string, string[], string[]][]
) {
  test(`keywords, format ${format}: what it is passes, and nothing else`, () => {
    const schema = { type: "string", format };
    for (const text of yes) assert(accepts(schema, JSON.stringify(text)), `${text} is refused`);
    for (const text of no) assert(!accepts(schema, JSON.stringify(text)), `${text} is let through`);
  });
}

test("what a schema cannot say exactly is refused with its place", () => {
  for (
    const [schema, words] of [
      [
        { type: "object", properties: { a: { type: "array", items: {}, uniqueItems: true } } },
        '#/properties/a has "uniqueItems"',
      ],
      [{
        type: "array",
        items: { $dynamicRef: "#n" },
        $defs: { a: { $dynamicAnchor: "n" }, b: { $dynamicAnchor: "n" } },
      }, "$dynamicRef"],
      [{ type: "object", properties: { a: { $ref: "#/%" } } }, "no escape"],
      [{ type: "object", properties: { a: { $ref: "other.json" } } }, "inside the schema"],
      [{ type: "object", required: true }, "#/required is not a list"],
      [{ type: "string", minLength: -1 }, "#/minLength"],
      [{ type: "integer", minimum: "3" }, "#/minimum is not a number"],
      [{ allOf: [{ $ref: "#" }] }, "refers to itself"],
      [false, "no value is valid"],
    ] as [Schema, string][]
  ) assertStringIncludes((assertThrows(() => json(schema), RangeError) as Error).message, words);
});
