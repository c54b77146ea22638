import { assertEquals } from "@std/assert";
import { test } from "node:test";
import { Turns } from "../../lib/engine/turns.ts";

/** All items in the order in which they leave. */
function drained<T>(turns: Turns<T>): T[] {
  const items: T[] = [];
  for (let [item] = turns.next(); item !== undefined; [item] = turns.next()) {
    turns.take(item);
    items.push(item);
  }
  return items;
}

test("clients leave one item each in turn, a client's in their order", () => {
  const turns = new Turns<string>();
  for (const item of ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]) turns.push(item[0], item);
  assertEquals(turns.length, 7);
  assertEquals([...turns.next()], ["a1", "b1", "c1"]);
  turns.take("a1");
  turns.push("d", "d1");
  assertEquals(drained(turns), ["b1", "c1", "a2", "d1", "b2", "a3", "a4"]);
  assertEquals(turns.length, 0);
});

test("withdrawing an item leaves the turns as they are", () => {
  const turns = new Turns<string>();
  for (const item of ["a1", "a2", "b1", "c1"]) turns.push(item[0], item);
  assertEquals(turns.withdraw((item) => item === "a1"), "a1");
  assertEquals(turns.withdraw((item) => item === "b1"), "b1");
  assertEquals(turns.withdraw((item) => item === "x"), undefined);
  assertEquals(drained(turns), ["a2", "c1"]);
  turns.push("a", "a3");
  turns.clear();
  assertEquals([turns.length, ...turns.next()], [0]);
});
