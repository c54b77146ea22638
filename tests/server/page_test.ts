import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { existsSync, mkdirSync } from "node:fs";
import process from "node:process";
import { after, test } from "node:test";
import { chromium, type Page } from "playwright-core";
import { serve } from "../../lib/server/mod.ts";

const executablePath = "/usr/bin/chromium";
const skip = existsSync(executablePath) ? false : `no Chromium at ${executablePath}`;
const args = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/** A folder that pictures of the page are put in, for a look at them. */
const pictures = process.env.VECINFER_PICTURES;

const server = skip
  ? undefined
  : await serve({ port: 0, device: "cpu", kv: ["vq2", "bf16"], sequences: 4, prefixes: 2 });
await server?.ready;
// A sanitizer's runtime that is loaded first into this process must not be loaded into the browser.
const { LD_PRELOAD: _, ...env } = process.env as Record<string, string>;
const browser = skip ? undefined : await chromium.launch({ executablePath, args, env });
after(async () => {
  await browser?.close();
  await server?.close(0);
});

const PAGES = [["light", 1280, 800], ["dark", 1280, 800], ["light", 390, 844], ["dark", 390, 844]] as const;

/** Contrast of two colours "rgb(r, g, b)" (WCAG 2.2, 1.4.3). */
function contrast(a: string, b: string): number {
  const [low, high] = [a, b].map((text) => {
    const [red, green, blue] = text.match(/[\d.]+/g)!.map((part) => Number(part) / 255)
      .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

async function open(
  scheme: "light" | "dark",
  width: number,
  height: number,
): Promise<{ page: Page; problems: string[] }> {
  const page = await browser!.newPage({ colorScheme: scheme, viewport: { width, height } }), problems: string[] = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(error.message));
  page.on(
    "request",
    (request) =>
      request.url().startsWith(server!.url) || request.url().startsWith("data:") ||
      problems.push(`asks for ${request.url()}`),
  );
  await page.goto(server!.url);
  await page.waitForSelector("#send:not([disabled])");
  return { page, problems };
}

const bar = (page: Page) => page.locator("#used").getAttribute("aria-valuenow").then(Number);

/** Asks for greedy answers of so many tokens at most: a drawn one may end at its first token. */
const settle = (page: Page, tokens: number) =>
  page.evaluate(
    `document.getElementById("tokens").value = "${tokens}"; document.getElementById("temperature").value = "0"`,
  );

/**
 * Notes in the page every length of the answer and the highest value of the gauge: the answer may be complete between
 * two looks from outside.
 */
const WATCH = `
  globalThis.seen = { lengths: [], most: 0 };
  new MutationObserver(() => {
    const length = document.querySelector("article.assistant")?.textContent.length ?? 0;
    if (length > (seen.lengths.at(-1) ?? 0)) seen.lengths.push(length);
    seen.most = Math.max(seen.most, Number(document.getElementById("used").getAttribute("aria-valuenow")));
  }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
`;

/** Waits until an expression is true in the page, whose policy forbids it to evaluate text itself. */
async function until(page: Page, expression: string): Promise<void> {
  for (let i = 0; i < 600; i++) {
    if (await page.evaluate(expression)) return;
    await page.waitForTimeout(25);
  }
  throw new Error(`never true: ${expression}`);
}

for (const [scheme, width, height] of PAGES) {
  test(
    `page, ${scheme} ${width} x ${height}: a message is answered as it is written, and the gauge moves`,
    { skip },
    async () => {
      const { page, problems } = await open(scheme, width, height);
      await settle(page, 300);
      const before = await bar(page);
      await page.evaluate(WATCH);
      await page.fill("#input", "The kernel module is loaded by");
      await page.press("#input", "Enter");
      await page.waitForSelector("article.assistant:not([aria-busy])");
      const { lengths, most } = await page.evaluate<{ lengths: number[]; most: number }>("seen");
      assert(lengths.length >= 3, `the text grew ${lengths.length} times`);
      assert(most > before, `the gauge stayed at ${before}`);
      if (pictures) {
        mkdirSync(pictures, { recursive: true });
        await page.screenshot({ path: `${pictures}/${scheme}-${width}.png` });
      }
      assertEquals(
        await page.evaluate("document.documentElement.scrollWidth <= innerWidth"),
        true,
        "it scrolls sideways",
      );
      for (const selector of ["article.user", "article.assistant", "dt", "dd", "small", "#send", "label"]) {
        const [text, back] = await page.evaluate<string[]>(`(() => {
          const element = document.querySelector(${JSON.stringify(selector)}), color = getComputedStyle(element).color;
          let at = element;
          while (at && getComputedStyle(at).backgroundColor === "rgba(0, 0, 0, 0)") at = at.parentElement;
          return [color, getComputedStyle(at ?? document.body).backgroundColor];
        })()`);
        assert(
          contrast(text, back) >= 4.5,
          `${selector}: ${text} on ${back} has a contrast of ${contrast(text, back).toFixed(2)}`,
        );
      }
      assertEquals(problems, []);
      await page.close();
    },
  );
}

test("page: the other cache, stopping, a second message, a new chat, all by keyboard", { skip }, async () => {
  const { page, problems } = await open("light", 1000, 700);
  assertEquals(await page.locator("#model option").allTextContents(), ["vq2 (tiny-llama)", "bf16 (tiny-llama:bf16)"]);
  await page.selectOption("#model", "tiny-llama:bf16");
  assertStringIncludes((await page.locator("#config").textContent())!, "bf16 / bf16");
  await settle(page, 1500); // Long enough to be stopped.
  await page.focus("#input");
  await page.keyboard.type("To install the package");
  await page.keyboard.press("Enter");
  await until(page, 'document.querySelector("article.assistant").textContent.length > 20');
  await page.keyboard.press("Tab");
  assertEquals(await page.evaluate("document.activeElement.id"), "send");
  await page.keyboard.press("Enter");
  await page.waitForSelector("article.assistant:not([aria-busy])");
  assertEquals(await page.textContent("#send"), "Send");
  assertEquals(await page.locator("article").count(), 2);
  for (let i = 0; i < 100 && server!.app.active > 0; i++) await page.waitForTimeout(20);
  assertEquals(server!.app.active, 0);
  await page.keyboard.type("And then");
  await page.keyboard.press("Enter");
  await until(page, 'document.querySelectorAll("article").length === 4');
  await page.click("#clear");
  assertEquals(await page.locator("article").count(), 0);
  assertEquals(problems, []);
  await page.close();
});

test("page: complete in itself, and nothing of a reply becomes markup", { skip }, async () => {
  const html = await (await fetch(server!.url)).text();
  assertEquals([...html.matchAll(/(?:src|href)="(?!data:)[^"]*"/g)].length, 0);
  assertMatch(html, /<html lang="en">/);
  const { page, problems } = await open("dark", 1000, 700);
  await page.fill("#input", "<img src=x onerror=alert(1)>");
  await page.press("#input", "Enter");
  await page.waitForSelector("article.assistant:not([aria-busy])");
  assertEquals(await page.locator("article img").count(), 0);
  assertEquals(problems, []);
  await page.close();
});
