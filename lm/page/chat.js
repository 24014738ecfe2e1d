// The page of `lm serve`: a chat by the server's own API, and beside it what the model has inside for a text. Texts of
// models and users become text nodes, never HTML.
"use strict";
(() => {
  const $ = id => document.getElementById(id);
  const KEY = "lm-key", WHAT = $("looking").textContent;
  let served = null, messages = [], images = [], answering = null, looking = null, edited = false;

  const kept = (() => {  // in this tab alone, where its browser keeps anything
    let own = "";
    try { own = sessionStorage.getItem(KEY) ?? ""; } catch { /* it does not */ }
    return { get: () => own, set: key => { own = key; try { sessionStorage.setItem(KEY, key); } catch { /* nor now */ } } };
  })();
  const element = (name, props, ...children) => {
    const e = document.createElement(name);
    Object.assign(e, props);
    e.append(...children);
    return e;
  };
  const show = (id, text) => { $(id).textContent = text; $(id).hidden = !text; };

  // ---------------------------------------------------------------- the server

  const ask = async (route, body, signal) => {
    const headers = {}, key = kept.get();
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(route, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error("the server does not answer");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) wantKey(!!key);
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `${answer.status} ${answer.statusText}`);
  };
  const posted = async (route, body, signal) => (await ask(route, body, signal)).json();

  const events = async function* (answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the server left before the end");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk;
      }
    }
  };

  const wantKey = refused => {
    $("ask-key").hidden = false;
    show("note", refused ? "This key is not known to the server." : "");
    $("key").focus();
  };
  $("ask-key").addEventListener("submit", event => {
    event.preventDefault();
    kept.set($("key").value.trim());
    $("key").value = "";
    begin();
  });

  const begin = async () => {
    try {
      served = await (await ask("props")).json();
    } catch (error) {
      $("about").textContent = $("ask-key").hidden ? error.message : "a key is wanted";
      return;
    }
    $("ask-key").hidden = true;
    const writes = served.total_slots > 0, name = served.model_alias;
    document.title = $("name").textContent = name;
    $("about").textContent = `${served.default_generation_settings.n_ctx.toLocaleString("en")} tokens of context`;
    show("note", !writes ? "This model writes no text here. It has embeddings, and can be looked into; an encoder, with what it puts in place of a [MASK]."
      : served.chat_template ? "" : "This model has no chat template: it continues the text, without turns.");
    $("chat").hidden = !writes;
    $("image").hidden = !(served.modalities.vision && served.chat_template);
    $("looks").hidden = !served.limits.inspect_tokens;
    $(writes ? "words" : "text").focus();
    document.documentElement.dataset.ready = "1";
  };

  // ---------------------------------------------------------------- the chat

  const call = said => served.chat_template ? { messages: said } : { prompt: said.map(one => one.content).join("") };
  const system = () => $("system").value ? [{ role: "system", content: $("system").value }] : [];
  const number = id => $(id).value === "" ? undefined : +$(id).value;

  const scrolled = change => {  // stays at the end, where it is
    const log = $("log"), low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    change();
    if (low) log.scrollTop = log.scrollHeight;
  };
  const turn = (role, text) => {
    const pre = element("pre", {}, document.createTextNode(text)), box = element("div", { className: `turn ${role}` }, pre);
    $("log").append(box);
    $("log").scrollTop = $("log").scrollHeight;
    return [box, pre.firstChild];
  };
  const busy = on => {
    $("send").disabled = on;
    $("stop").disabled = !on;
  };

  const counted = ({ usage, timings }) => {
    const speed = timings.predicted_n > 1 ? ` · ${timings.predicted_per_second.toFixed(1)} tokens a second` : "";
    return `${usage.prompt_tokens} + ${usage.completion_tokens} tokens${speed}`;
  };
  const asked = async (said, signal) => {  // the body of a request that fits the context
    const { count, max_model_len: most } = await posted("tokenize", call(said), signal);
    if (count >= most) throw new Error(`the conversation has ${count} tokens, and the context ${most}: clear it`);
    const options = { temperature: number("temperature"), top_p: number("top_p"), stream: true, stream_options: { include_usage: true } };
    return { ...call(said), ...options, max_tokens: Math.min(number("max_tokens") ?? most, most - count, served.limits.new_tokens || most) };
  };

  const picture = url => element("img", { src: url, alt: "an image" });
  const showImages = () => $("images").replaceChildren(...images.map((url, i) => Object.assign(picture(url), {
    title: "a click removes it", onclick: () => { images.splice(i, 1); showImages(); },
  })));
  $("image").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    const read = file => new Promise((done, failed) => {
      const reader = new FileReader();
      [reader.onload, reader.onerror] = [() => done(reader.result), () => failed(new Error(`${file.name} cannot be read`))];
      reader.readAsDataURL(file);
    });
    try {
      images.push(...await Promise.all([...$("file").files].map(read)));
      showImages();
    } catch (error) { show("fault", error.message); }
    $("file").value = "";
    $("words").focus();
  });
  const withImages = (words, urls) => urls.length  // the content of a message
    ? [...urls.map(url => ({ type: "image_url", image_url: { url } })), { type: "text", text: words }] : words;

  const say = async (words, urls) => {
    const own = answering = new AbortController(), asks = { role: "user", content: withImages(words, urls) };
    const said = [...system(), ...messages, asks];
    const [question] = turn("user", words), [box, text] = turn("assistant", "");
    question.prepend(...urls.map(picture));
    let end = "stopped", counts = "", fault = "";
    busy(true);
    show("fault", "");
    try {
      const route = served.chat_template ? "v1/chat/completions" : "v1/completions";
      for await (const chunk of events(await ask(route, await asked(said, own.signal), own.signal))) {
        const [choice] = chunk.choices;
        if (choice) scrolled(() => { text.data += choice.delta?.content ?? choice.text ?? ""; });
        if (choice?.finish_reason === "length") end = "cut at the most tokens";
        else if (choice?.finish_reason) end = "";
        if (chunk.usage) counts = counted(chunk);
      }
    } catch (error) {
      if (error.name !== "AbortError") fault = error.message;
    }
    if (answering !== own) return;  // cleared meanwhile
    answering = null;
    busy(false);
    show("fault", fault);
    if (!text.data && (fault || end === "stopped")) {  // nothing was said, so nothing was asked
      [question, box].forEach(e => e.remove());
      $("words").value ||= words;
      images = images.length ? images : urls;
      showImages();
      return;
    }
    const whole = [...said, { role: "assistant", content: text.data }];
    messages = [...messages, ...whole.slice(-2)];
    const button = element("button", { className: "link", type: "button", onclick: () => look(whole) }, "look inside");
    const about = [counts, fault ? "" : end].filter(Boolean).join(" · ");
    const shown = whole.some(one => Array.isArray(one.content));  // the inside is that of a text
    const rest = $("looks").hidden || shown ? [] : about ? [" · ", button] : [button];
    scrolled(() => box.append(element("p", { className: "muted" }, about, ...rest)));
    if (!edited && !shown) $("text").value = await textOf(whole).catch(() => $("text").value);
  };

  $("say").addEventListener("submit", event => {
    event.preventDefault();
    const words = $("words").value;
    if (!words || answering || !served) return;
    const urls = images;
    [$("words").value, images] = ["", []];
    showImages();
    say(words, urls);
  });
  $("words").addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("say").requestSubmit();
  });
  const stop = () => answering?.abort();
  $("stop").addEventListener("click", stop);
  document.addEventListener("keydown", event => { if (event.key === "Escape") { stop(); looking?.abort(); } });
  $("clear").addEventListener("click", () => {
    stop();
    [answering, messages, images] = [null, [], []];
    showImages();
    busy(false);
    show("fault", "");
    $("log").replaceChildren();
    if (!edited) $("text").value = "";
    $("words").focus();
  });

  // ---------------------------------------------------------------- inside

  const textOf = async said => {  // as the model read and wrote it
    if (!served.chat_template) return said.map(one => one.content).join("");
    const { prompt } = await posted("apply-template", { messages: said.slice(0, -1) });
    return prompt + said[said.length - 1].content;
  };
  const look = async said => {
    looking?.abort();
    const own = looking = new AbortController(), since = performance.now();
    const told = () => { $("looking").textContent = `looking … ${Math.round((performance.now() - since) / 1000)} s`; };
    const clock = setInterval(told, 1000);
    told();
    show("amiss", "");
    try {
      if (said) [$("text").value, edited] = [await textOf(said), false];
      const zero = $("zero").value.split(/[\s,]+/).filter(Boolean), patch_from = $("patch_from").value;
      const body = { text: $("text").value, ...(zero.length && { zero }), ...(patch_from && { patch_from }) };
      const page = await (await ask("inspect", body, own.signal)).text();
      Object.assign($("inside"), { srcdoc: page, hidden: false });
      $("looking").textContent = `the arrow keys choose token and layer in it · ${((performance.now() - since) / 1000).toFixed(1)} s`;
      if (said) $("looks").scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (looking === own) $("looking").textContent = WHAT;
      if (error.name !== "AbortError") show("amiss", error.message);
    }
    clearInterval(clock);
  };
  $("text").addEventListener("input", () => { edited = $("text").value !== ""; });
  $("inspect").addEventListener("submit", event => {
    event.preventDefault();
    if (served) look();
  });
  $("text").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("inspect").requestSubmit();
  });

  begin();
})();
