import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { Random } from "../support/random.ts";
import { withFolder } from "../weights/fixture.ts";
import { MULTI_BYTE, tinyLlama, writeByteLevel, writeSentencePiece } from "./fixture.ts";

/** All pieces of a stream. */
function stream(tokenizer: Tokenizer, ids: readonly number[], options = {}): string[] {
  const detokenizer = tokenizer.detokenizer(options);
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

test("detokenizer: byte by byte, each character comes whole with its last byte", () =>
  withFolder((folder) => {
    writeByteLevel(folder);
    const tokenizer = Tokenizer.open(folder);
    const bytes = new TextEncoder().encode(MULTI_BYTE);
    const pieces = stream(tokenizer, [...bytes]);
    const expected: string[] = [];
    for (const character of MULTI_BYTE) {
      const length = new TextEncoder().encode(character).byteLength;
      for (let i = 1; i < length; i++) expected.push("");
      expected.push(character);
    }
    assertEquals(pieces, [...expected, ""]);
  }));

test("detokenizer: bytes that form no character become U+FFFD once that is certain", () =>
  withFolder((folder) => {
    writeByteLevel(folder);
    const tokenizer = Tokenizer.open(folder);
    const cases: [bytes: number[], pieces: string[]][] = [
      [[0x61, 0xe6, 0x9d], ["a", "", "", "\ufffd"]],
      [[0xe6, 0x61], ["", "\ufffda", ""]],
      [[0xe6, 0xe6, 0x9d, 0xb1], ["", "\ufffd", "", "東", ""]],
      [[0xff, 0x80, 0x61], ["\ufffd", "\ufffd", "a", ""]],
      [[0xed, 0xa0, 0x80], ["", "\ufffd\ufffd", "\ufffd", ""]],
      [[0xf0, 0x9f, 257, 0x9a, 0x80], ["", "", "", "", "🚀", ""]],
      [[0xf0, 0x9f, 258, 0x61], ["", "", "\ufffd<tool>", "a", ""]],
    ];
    for (const [bytes, pieces] of cases) assertEquals(stream(tokenizer, bytes), pieces, String(bytes));
  }));

test("detokenizer: pieces together are the decoded whole, on random ids and on text", () =>
  withFolder((folder) => {
    const random = new Random(903);
    writeByteLevel(folder);
    const bytes = Tokenizer.open(folder);
    const tiny = Tokenizer.open(tinyLlama);
    for (const tokenizer of [bytes, tiny]) {
      assertEquals(stream(tokenizer, tokenizer.encode(MULTI_BYTE)).join(""), MULTI_BYTE);
      for (let round = 0; round < 300; round++) {
        const ids = [...random.integers(random.integer(0, 50), 0, tokenizer.vocabularySize - 1)];
        for (const skipSpecialTokens of [true, false]) {
          const pieces = stream(tokenizer, ids, { skipSpecialTokens });
          // A reference of its own: all bytes at once.
          const kept = ids.filter((id) => !skipSpecialTokens || !tokenizer.vocabulary.isSpecial(id));
          const whole = new TextDecoder("utf-8", { ignoreBOM: true }).decode(
            Uint8Array.from(kept.flatMap((id) => [...tokenizer.tokenBytes(id)])),
          );
          assertEquals(pieces.join(""), whole, String(ids));
          assertEquals(tokenizer.decode(ids, { skipSpecialTokens }), whole);
          for (const piece of pieces) assert(piece.isWellFormed());
        }
      }
    }
  }));

test("detokenizer: the space before a text goes away at its start only", () =>
  withFolder((folder) => {
    writeSentencePiece(folder);
    const tokenizer = Tokenizer.open(folder);
    const the = tokenizer.tokenId("▁the")!;
    const space = tokenizer.tokenId("▁")!;
    assertEquals(stream(tokenizer, [1, the, the]), ["", "the", " the", ""]);
    assertEquals(stream(tokenizer, [space, the]), ["", " the", ""]);
    assertEquals(stream(tokenizer, [the], { continuation: true }), [" the", ""]);
    assertEquals(stream(tokenizer, [1, the], { skipSpecialTokens: false }), ["<s>", " the", ""]);
    const detokenizer = tokenizer.detokenizer();
    assertEquals([detokenizer.push(the), detokenizer.flush(), detokenizer.push(the)], ["the", "", "the"]);
    assertEquals(stream(tokenizer, [...new TextEncoder().encode("東")].map((byte) => byte + 3)), ["", "", "東", ""]);
  }));
