// The modules of an exported page, in Node with npm's package: greedy ids, and two draws of one seed. PAGE COUNT PROMPT
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const here = createRequire(`${process.cwd()}/`);
const library = await import(pathToFileURL(here.resolve("@huggingface/transformers")));
const [page, count, prompt] = process.argv.slice(2);
const { decode, encode, load } = await import(pathToFileURL(`${page}/model.js`));
const { start, template } = await import(pathToFileURL(`${page}/settings.js`));

const opened = await load(library, `${page}/`, template);
const written = async (settings) => {
  const ids = encode(opened, prompt, start);
  for await (const id of decode(opened, ids.slice(), { count: Number(count), ...settings })) ids.push(id);
  return ids;
};
const unknown = await (async () => encode(opened, "☃", start))().catch((error) => error.message);
const drawn = [await written({ temperature: 0.9, top_p: 0.9, seed: 5 }), await written({ temperature: 0.9, top_p: 0.9, seed: 5 })];
const nothing = template ? null : encode(opened, "", start);
console.log(JSON.stringify({ ids: await written({ temperature: 0 }), drawn, nothing, unknown, start }));
