"""The style and the script of the gallery's page."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 1500px; margin: 0 auto;
  padding: 0 1.2rem 4rem; }
h1 { font-size: 1.5rem; margin: 1.4rem 0 .2rem; overflow-wrap: anywhere; }
header p { max-width: 54rem; margin: .4rem 0; }
details { color: #56606b; font-size: .92rem; }
summary { cursor: pointer; }
kbd, code { background: #eef1f4; border-radius: 4px; padding: 0 .3rem; font-size: .85em; }
.bar { position: sticky; top: 0; z-index: 1; background: #fff; border-bottom: 1px solid #d8dce0; padding: .6rem 0;
  display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center; justify-content: space-between; }
#count { font-weight: 600; }
.buttons { display: flex; flex-wrap: wrap; gap: .5rem; }
#message { flex-basis: 100%; color: #a4262c; }
#message:empty, #summary:empty { display: none; }
#summary { flex-basis: 100%; color: #56606b; font-size: .88rem; max-height: 3.2em; overflow-y: auto; }
button, .button { font: inherit; font-size: .92rem; border: 1px solid #8a949e; border-radius: 6px; background: #fff;
  color: inherit; padding: .3rem .8rem; cursor: pointer; white-space: nowrap; }
button:hover, .button:hover { background: #f0f3f6; }
button.main { background: #24598f; border-color: #24598f; color: #fff; }
button.main:hover { background: #1c4a79; }
#load { position: absolute; width: 1px; height: 1px; opacity: 0; }
section { display: grid; grid-template-columns: 17rem minmax(0, 1fr); gap: 1rem; padding: 1rem 0;
  border-bottom: 1px solid #e4e7ea; }
section:focus-within { background: #f4f8fc; }
h2 { font-size: 1.05rem; margin: 0 0 .4rem; display: flex; align-items: center; gap: .5rem; }
h2 i { width: 1.5rem; height: 1.5rem; border-radius: 4px; border: 1px solid #0003; flex: none; }
.name { font: inherit; width: 100%; padding: .35rem .6rem; border: 1px solid #8a949e; border-radius: 6px;
  background: #fff; color: inherit; }
.name.ignored { color: #6b7580; font-style: italic; }
.facts p { margin: .5rem 0 0; font-size: .88rem; color: #56606b; }
.near a { display: inline-flex; align-items: baseline; gap: .3rem; color: inherit; text-decoration: none;
  margin-right: .5rem; white-space: nowrap; }
.near a:hover span { text-decoration: underline; }
.near i { align-self: center; width: .8rem; height: .8rem; border-radius: 3px; border: 1px solid #0003; }
.pictures { display: flex; flex-wrap: wrap; gap: .4rem; align-content: flex-start; }
.pictures img { max-height: 130px; max-width: min(260px, 100%); border-radius: 4px; }
:focus-visible { outline: 3px solid #4a90d9; outline-offset: 1px; }
@media (max-width: 700px) {
  body { padding: 0 .8rem 3rem; }
  section { grid-template-columns: minmax(0, 1fr); gap: .6rem; }
  .buttons { gap: .4rem; }
  button, .button { padding: .3rem .55rem; font-size: .86rem; }
  .pictures { flex-wrap: nowrap; overflow-x: auto; }
  .pictures img { max-height: 104px; max-width: 200px; flex: none; }
  button, .button, .name { min-height: 44px; display: inline-flex; align-items: center; }
}
"""

SCRIPT = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const fields = [...document.querySelectorAll('.name')];
const byId = id => document.getElementById(id);
const clean = text => text.trim().split(/\\s+/).join(' ');
const nameOf = field => { const name = clean(field.value); return name.toLowerCase() === 'ignore' ? 'ignore' : name; };
const names = data.names.slice();  // those of clusters without a pixel here, which have no field, stay as they are
let saved = JSON.stringify(names);

function update() {
  for (const field of fields) names[field.dataset.cluster] = nameOf(field) || null;
  const counts = new Map();
  for (const field of fields) if (nameOf(field)) counts.set(nameOf(field), (counts.get(nameOf(field)) || 0) + 1);
  const unnamed = fields.filter(field => !nameOf(field)).length;
  byId('count').textContent = unnamed ? `${unnamed} of ${fields.length} clusters are unnamed`
    : `All ${fields.length} clusters are named`;
  byId('next').disabled = !unnamed;
  const sorted = [...counts.keys()].sort((a, b) => a.localeCompare(b));
  byId('summary').textContent = sorted.map(name => `${name} (${counts.get(name)})`).join(', ');
  const known = new Set(['ignore', ...sorted]);
  const option = name => Object.assign(document.createElement('option'), {value: name});
  byId('known').replaceChildren(...[...known].map(option));
  for (const field of fields) field.classList.toggle('ignored', nameOf(field) === 'ignore');
  for (const link of document.querySelectorAll('[data-near]')) {
    const name = names[link.dataset.near];
    link.querySelector('span').textContent = link.dataset.near + (name ? ` ${name}` : '');
  }
}

function say(text) { byId('message').textContent = text; }

// Targets of links and of Enter stop below the bar, whose height changes with its text.
const bar = document.querySelector('.bar');
const leaveRoom = () => { document.documentElement.style.scrollPaddingTop = `${bar.offsetHeight + 4}px`; };
new ResizeObserver(leaveRoom).observe(bar);

function go(field) {
  if (!field) return;
  field.closest('section').scrollIntoView({block: 'start'});
  field.focus({preventScroll: true});
  field.select();
}

function save() {
  update();
  const content = {checkpoint_sha256: data.sha256, num_clusters: names.length, names};
  const blob = new Blob([JSON.stringify(content, null, 1) + '\\n'], {type: 'application/json'});
  const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(blob), download: 'names.json'});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  saved = JSON.stringify(names);
  say('');
}

async function load(file) {
  let content;
  try { content = JSON.parse(await file.text()); } catch { return say(`${file.name} is not JSON.`); }
  if (!content || !Array.isArray(content.names)) return say(`${file.name} is not a names.json of a gallery.`);
  if (content.checkpoint_sha256 !== data.sha256)
    return say(`${file.name} names the clusters of another checkpoint (sha256 ` +
      `${String(content.checkpoint_sha256).slice(0, 12)}..., this page is of ${data.sha256.slice(0, 12)}...).`);
  if (content.names.length !== names.length)
    return say(`${file.name} has ${content.names.length} names, this page has ${names.length} clusters.`);
  content.names.forEach((name, i) => { names[i] = name; });
  for (const field of fields) field.value = names[field.dataset.cluster] || '';
  update();
  saved = JSON.stringify(names);
  say('');
}

document.addEventListener('input', event => { if (event.target.matches('.name')) update(); });
document.addEventListener('keydown', event => {
  const place = fields.indexOf(event.target);
  if (event.key === 'Enter' && place >= 0) {
    event.preventDefault();
    go(fields[place + (event.shiftKey ? -1 : 1)]);
  } else if (event.key === 's' && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    save();
  } else if ((event.key === 'Enter' || event.key === ' ') && event.target.matches('label.button')) {
    event.preventDefault();
    byId('load').click();
  }
});
byId('save').addEventListener('click', save);
byId('next').addEventListener('click', () => go(fields.find(field => !nameOf(field))));
byId('load').addEventListener('change', event => {
  if (event.target.files.length) load(event.target.files[0]);
  event.target.value = '';
});
window.addEventListener('beforeunload', event => {
  if (JSON.stringify(names) !== saved) event.preventDefault();
});
update();
saved = JSON.stringify(names);
"""
