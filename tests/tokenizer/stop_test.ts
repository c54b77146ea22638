import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { StopMatcher } from "../../lib/tokenizer/stop.ts";
import { Random } from "../support/random.ts";

/** All that a matcher lets through of these pieces, and the stop string it met. */
function through(stops: string[], pieces: Iterable<string>): { text: string; stop: string | undefined } {
  const matcher = new StopMatcher(stops);
  let text = "";
  for (const piece of pieces) {
    const result = matcher.push(piece);
    text += result.text;
    if (result.stopped) return { text, stop: result.stop };
  }
  return { text: text + matcher.flush(), stop: undefined };
}

test("stop: holds back what may begin a stop string, and no more", () => {
  const matcher = new StopMatcher(["\nUser:", "###"]);
  assertEquals(matcher.push("one#"), { text: "one", stopped: false });
  assertEquals(matcher.push("#"), { text: "", stopped: false });
  assertEquals(matcher.push(" two\n"), { text: "## two", stopped: false });
  assertEquals(matcher.push("Us"), { text: "", stopped: false });
  assertEquals(matcher.push("er: hi"), { text: "", stopped: true, stop: "\nUser:" });
  assertEquals(matcher.push("more"), { text: "", stopped: true, stop: "\nUser:" });
  assertEquals(matcher.flush(), "");
});

test("stop: flush gives back what was held", () => {
  const matcher = new StopMatcher(["###"]);
  assertEquals([matcher.push("a##").text, matcher.flush(), matcher.flush()], ["a", "##", ""]);
});

test("stop: the first to be complete wins, then the longest", () => {
  assertEquals(through(["abcd", "bc"], ["abcd"]), { text: "a", stop: "bc" });
  assertEquals(through(["bc", "abc"], ["xabc"]), { text: "x", stop: "abc" });
  assertEquals(through(["aab"], ["aaab"]), { text: "a", stop: "aab" });
  assertEquals(through([], ["text"]), { text: "text", stop: undefined });
  assertEquals(through(["🚀"], ["go 🚀!"]), { text: "go ", stop: "🚀" });
  assertThrows(() => new StopMatcher(["a", ""]), RangeError, "empty");
});

test("stop: the result does not depend on the pieces, on random texts of two letters", () => {
  const random = new Random(77);
  const word = (length: number): string => Array.from({ length }, () => random.uniform() < 0.5 ? "a" : "b").join("");
  let met = 0;
  for (let round = 0; round < 2000; round++) {
    const stops = Array.from({ length: random.integer(1, 3) }, () => word(random.integer(1, 6)));
    const text = word(random.integer(0, 20));
    // Reference: the shortest beginning of the text that ends with a stop string.
    let expected: { text: string; stop: string | undefined } = { text, stop: undefined };
    for (let end = 1; end <= text.length && expected.stop === undefined; end++) {
      const ending = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length);
      if (ending.length > 0) expected = { text: text.slice(0, end - ending[0].length), stop: ending[0] };
    }
    if (expected.stop !== undefined) met++;
    assertEquals(through(stops, text), expected, `${stops} in ${text}, by character`);
    assertEquals(through(stops, [text]), expected, `${stops} in ${text}, whole`);
    const cut = random.integer(0, text.length);
    assertEquals(through(stops, [text.slice(0, cut), text.slice(cut)]), expected, `${stops} in ${text} cut at ${cut}`);
  }
  assert(met > 500 && met < 2000, `${met} texts held a stop string`);
});
