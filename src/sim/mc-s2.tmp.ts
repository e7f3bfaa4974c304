import {ModelCheck} from '/work/main/src/sim/model-check.ts';
const opt = JSON.parse(process.argv[2]!);
if (opt.mut) {
  opt.mutations = Object.fromEntries(Object.entries(opt.mut).map(([k, v]) => [k, new Set(v as string[])]));
}
const t = performance.now();
const r = new ModelCheck(opt).run();
console.log(
  r.states,
  r.transitions,
  r.depth,
  r.complete,
  r.violation,
  ((performance.now() - t) / 1000).toFixed(1) + 's',
  process.memoryUsage().rss >> 20,
);
if (r.violation) console.log(r.path.join('\n'));
