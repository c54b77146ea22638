import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "node:test";
import { CacheFullError, PageList, PagePool } from "../../lib/cache/pages.ts";
import { Random } from "../support/random.ts";

const seed = Date.now() % 2 ** 31;

test("a shared last page is copied by the one that writes, and by it alone", () => {
  const pool = new PagePool(6), origin = new PageList(pool);
  assertEquals(origin.grow(0, 100)?.pages, origin.pages);
  const fork = origin.fork(), before = [...origin.pages];
  assertEquals([pool.free, pool.shared], [4, 2]);
  const change = fork.grow(100, 40)!;
  assertEquals([change.first, change.copyOf, change.pages.length], [1, before[1], 2]);
  assertEquals(fork.pages, [before[0], ...change.pages]);
  assertEquals(origin.pages, before);
  assertEquals(origin.grow(100, 28), undefined); // its own page now
  assertEquals([pool.free, pool.shared], [2, 1]);
  // At a page's end nothing is written into a shared page.
  const whole = new PageList(pool);
  whole.grow(0, 64);
  const next = whole.fork().grow(64, 1)!;
  assertEquals([next.first, next.copyOf], [1, undefined]);
});

test("where pages run out nothing changes, and the error says how many are needed", () => {
  const pool = new PagePool(3), list = new PageList(pool);
  list.grow(0, 70);
  const fork = list.fork(), held = [...fork.pages];
  assertThrows(() => fork.grow(70, 60), CacheFullError, "2 pages are needed for 60 tokens, 1 are free");
  assertEquals([fork.pages, pool.free, pool.shared], [held, 1, 2]);
  assertThrows(() => [pool.take(), pool.take()], CacheFullError, "all 3 pages");
});

test(`tokens of many sequences that fork, grow and shrink stay their own, seed ${seed}`, () => {
  const random = new Random(seed), pool = new PagePool(40), tokens = new Map<string, number>();
  // What each place of a page holds, and what each sequence should.
  let sequences: { list: PageList; own: number[] }[] = [{ list: new PageList(pool), own: [] }];
  let stamp = 0;
  for (let step = 0; step < 600; step++) {
    const at = random.integer(0, sequences.length - 1), { list, own } = sequences[at];
    const action = random.integer(0, 9);
    if (action === 0 && sequences.length < 6) {
      sequences.push({ list: list.fork(), own: [...own] });
    } else if (action === 1) {
      own.length = random.integer(0, own.length);
      list.shrink(own.length);
    } else if (action === 2 && sequences.length > 1) {
      list.shrink(0);
      sequences = sequences.filter((_, i) => i !== at);
    } else {
      const count = random.integer(1, 90), held = [...list.pages];
      try {
        const change = list.grow(own.length, count);
        if (change?.copyOf !== undefined) {
          for (let i = 0; i < 64; i++) {
            tokens.set(`${change.pages[0]} ${i}`, tokens.get(`${change.copyOf} ${i}`) ?? -1);
          }
        }
        if (change) assertEquals(list.pages, [...held.slice(0, change.first), ...change.pages]);
        for (let i = own.length; i < own.length + count; i++) {
          tokens.set(`${list.pages[Math.floor(i / 64)]} ${i % 64}`, stamp);
        }
        own.push(...Array.from({ length: count }, () => stamp));
        stamp++;
      } catch (error) {
        assert(error instanceof CacheFullError, String(error));
        assertEquals(list.pages, held);
      }
    }
    for (const { list, own } of sequences) {
      assertEquals(list.pages.length, Math.ceil(own.length / 64));
      own.forEach((token, i) => assertEquals(tokens.get(`${list.pages[Math.floor(i / 64)]} ${i % 64}`), token));
    }
    const holders = new Map<number, number>();
    for (const { list } of sequences) for (const page of list.pages) holders.set(page, (holders.get(page) ?? 0) + 1);
    assertEquals(pool.free, pool.count - holders.size);
    assertEquals(pool.shared, [...holders.values()].filter((count) => count > 1).length);
  }
  for (const { list } of sequences) list.shrink(0);
  assertEquals(pool.free, pool.count);
});
