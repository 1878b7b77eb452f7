"""The lessons: text, equations, a question each, and the recorded run that shows it."""

from __future__ import annotations

from ace_core.ui.learn.lesson import Choice, Lesson

__all__ = ["LESSONS"]

LESSONS = (
    Lesson(
        "What a residual stream is",
        r"""
A language model keeps one list of $d$ numbers for every token it has read: a *vector*, a point in a space of $d$
dimensions. The model is a stack of *blocks*. Each block reads the vectors and **adds** something to them, so that
the vector of a token flows upwards and is only ever amended. That is its *residual stream*:

$$v_{\ell+1} = v_\ell + \mathrm{block}_{\ell+1}(v_\ell)$$

Whatever the model knows when it chooses the next word has to be somewhere in that vector. In the default model $d =
576$, and there are 30 blocks, counted from 0. This page edits the vector as it leaves a block and lets the model go
on from there.

Sources: residual connections, [1512.03385](https://arxiv.org/abs/1512.03385); in transformers,
[1706.03762](https://arxiv.org/abs/1706.03762).
""",
        "stream",
        "A prompt as the default model reads it. Shade: how much each token's vector resembles harmful (amber) or "
        "harmless (violet) requests after the chosen block.",
        "A token's vector leaves block 16 and enters block 17. What happens to it there?",
        (
            Choice("Block 17 replaces it by a new vector.", "Not quite: the old vector stays and something is added."),
            Choice(
                "Block 17 adds its own output to it.",
                "Right. That is why an edit after one block is still there in the next, among whatever was added.",
                True,
            ),
            Choice(
                "It is shortened to the numbers that matter.",
                "Not quite: it keeps its length of 576 numbers all the way up.",
            ),
        ),
        "four-methods",
    ),
    Lesson(
        "Two means and the refusal direction",
        r"""
Take many harmless and many harmful requests, and the vector of the last token of each, after one block. Their
averages are $\mu^-$ and $\mu^+$. The arrow from one to the other is the **refusal direction**, its length the
**class gap**:

$$r = \mu^+ - \mu^- \qquad g = \lVert r \rVert \qquad u = r / g$$

Any vector has a place along it, its **refusal coordinate**:

$$c(v) = \frac{(v - \mu^-)\cdot r}{\lVert r \rVert^2}$$

It is 0 at the harmless mean and 1 at the harmful mean, whatever the model. So coefficients on this page are in
*class gaps*: $\alpha = 1$ means one whole gap.

Sources: directions from differences of means, [2312.06681](https://arxiv.org/abs/2312.06681); refusal as one
direction, [2406.11717](https://arxiv.org/abs/2406.11717).
""",
        "axis",
        "Real prompts in the default model. Turn the line: below, every prompt as it lies along that line.",
        "Along which line through the cloud do the two means lie farthest apart?",
        (
            Choice(
                "Along the one where all prompts together spread most.",
                "Not quite: prompts differ in much besides harm, such as topic, and that may spread them more.",
            ),
            Choice(
                "Along the difference of the two means.",
                "Right: turned by an angle θ, the gap that is left shrinks to g·cos θ, and at 90° it is gone.",
                True,
            ),
            Choice(
                "It makes no difference: the means are two fixed points.",
                "Not quite: the points are fixed, but seen along another line they come closer together.",
            ),
        ),
        "look-alike",
    ),
    Lesson(
        "Activation addition",
        r"""
The simplest edit adds some of the refusal direction to every vector:

$$v' = v + \alpha\, r \qquad\text{so}\qquad c' = c + \alpha$$

With a negative $\alpha$ the model should refuse less, with a positive one more. Every vector is moved by the same
distance, wherever it was. A prompt that was far out stays far out, and two prompts stay as far apart as they were:
one coefficient is too little for some and too much for others.

Source: contrastive activation addition, [2312.06681](https://arxiv.org/abs/2312.06681).
""",
        "addition",
        "Drag α: both clouds slide, and neither changes its shape.",
        "Two prompts lie at coordinates 0.1 and 0.9. Where are they after addition with α = −1?",
        (
            Choice("Both at −1.", "Not quite: addition does not say where to go but how far. ACE says where."),
            Choice("At −0.9 and −0.1.", "Right: each is moved by −1, and they stay 0.8 apart.", True),
            Choice("Both at 0.", "Not quite: for that the old coordinate would have to be taken away first."),
        ),
        "addition-harmless",
    ),
    Lesson(
        "Ablation and the origin problem",
        r"""
*Directional ablation* takes the component along $r$ away:

$$v' = v - (v\cdot u)\,u \qquad\text{so}\qquad c' = -\frac{\mu^-\cdot r}{\lVert r \rVert^2}$$

Look at the right-hand side: no $v$ in it. All prompts land at one coordinate, and it is that of the **origin**, the
list of all zeros. But no prompt lies at the origin, and nothing in training made it mean “neither harmful nor
harmless”: add the same vector to all activations, tell the next block to subtract it, and the model behaves as
before, with the origin elsewhere. *Affine ablation* goes back to a point that means something, the harmless mean,
so that $c' = 0$:

$$v' = v - (v\cdot u)\,u + (\mu^-\cdot u)\,u$$

Sources: ablation, [2406.11717](https://arxiv.org/abs/2406.11717); the origin problem,
[2411.09003](https://arxiv.org/abs/2411.09003).
""",
        "origin",
        "The lower slider moves the origin and nothing else. Which of the two methods follows it?",
        "Suppose the origin lies at coordinate 1, level with the harmful mean. What does directional ablation do?",
        (
            Choice(
                "It takes refusal away, as it always does.",
                "Not quite: it takes away the component counted from the origin, and here that leaves every prompt "
                "where harmful ones are.",
            ),
            Choice(
                "It puts harmless prompts where harmful ones are.",
                "Right: every prompt ends at coordinate 1, so that a harmless one may now be refused.",
                True,
            ),
            Choice(
                "Nothing, since only distances matter.",
                "Not quite: addition cares only for distances, ablation counts from the origin.",
            ),
        ),
        "origin-problem",
    ),
    Lesson(
        "Affine concept editing",
        r"""
**ACE** first goes to the harmless mean and then moves on by $\alpha$:

$$v' = v - (v\cdot u)\,u + (\mu^-\cdot u)\,u + \alpha\, r \qquad\text{so}\qquad c' = \alpha$$

So $\alpha$ says *where*, not how far: 0 is the harmless mean, 1 the harmful mean, the same for every token of every
prompt. Affine ablation is ACE at 0. Everything at right angles to $r$, which is all the rest of what the vector
says, is left as it was. All these edits are one formula with two numbers, $\lambda$ (how much is taken away) and
$s$ (what is put back):

$$v' = v + \bigl(s - \lambda\,(v\cdot u)\bigr)\,u$$

Source: Marshall, Scherlis and Belrose, [2411.09003](https://arxiv.org/abs/2411.09003).
""",
        "ace",
        "Change between the two methods at the same α: one slides the clouds, the other puts them on a line.",
        "ACE at α = 1 edits a request for an omelette. Where are its tokens then, at the edited block?",
        (
            Choice(
                "All exactly at 1, where harmful requests lie on average.",
                "Right. Whether the model then refuses is another matter: see what it does on Compare.",
                True,
            ),
            Choice("Each one gap further than it was.", "Not quite: that is activation addition."),
            Choice(
                "It depends on how harmless the request is.",
                "Not quite: the old component is taken away, so nothing is left for it to depend on.",
            ),
        ),
        "ace-one-harmless",
    ),
    Lesson(
        "Choosing a layer",
        r"""
There is a refusal direction at every block, and one has to choose where to edit. A first look is how well the
coordinate tells *held-out* prompts apart, ones that were not used for the means. AUROC is the chance that a harmful
prompt lies above a harmless one:

$$\mathrm{AUROC} = P\bigl(c(v^{+}) > c(v^{-})\bigr)$$

1 is perfect and ½ is chance. But to *read* a concept at a block does not mean that the model *uses* it there: too
early, and later blocks work it out once more from what was left; too late, and the answer is settled. So the choice
is made by effect: does the edit make harmful prompts answered, harmless ones refused, and leave the rest alone?

Sources: choosing by effect, [2406.11717](https://arxiv.org/abs/2406.11717); without looking at refusals,
[2506.00085](https://arxiv.org/abs/2506.00085).
""",
        "layers",
        "Held-out prompts of the default model, block by block. Below, AUROC at every block.",
        "At some block AUROC is 0.99. Will an edit there make the model stop refusing?",
        (
            Choice(
                "Yes: the direction tells the classes apart almost perfectly.",
                "Not quite: that shows that harm can be read off there, not that refusal is decided there.",
            ),
            Choice(
                "One has to try: reading and causing are different things.",
                "Right. That is why a layer is chosen by what an edit there does.",
                True,
            ),
            Choice(
                "No: edits work at the last blocks only.",
                "Not quite: late edits come after the answer is settled. The best blocks are mostly in the middle.",
            ),
        ),
        "early-layer",
    ),
    Lesson(
        "What steering can't do",
        r"""
An edit is exact about one thing: one coordinate, at the edited block. It promises nothing else.

- **It adds no knowledge.** A model that does not know how will answer, and be wrong.
- **Later blocks go on.** They add to the edited vector, and the coordinate drifts off again.
- **One direction is not all of refusal.** More than one direction can bring it about
  ([2502.17420](https://arxiv.org/abs/2502.17420)), and whether a model *thinks* a request harmful is kept apart
  from whether it *refuses* ([2507.11878](https://arxiv.org/abs/2507.11878)).
- **Too far is out of bounds.** At coordinates where no prompt ever lay, the next block meets vectors that it never
  learnt to read, and text falls apart.

ACE promises, at one block and for no other,

$$c' = \alpha$$
""",
        "drift",
        "One recorded prompt, its last token at every block, before and after a method's edit, and what was answered.",
        "ACE at α = 0 put every token of a harmful request exactly at 0. What is certain about the answer?",
        (
            Choice(
                "It is correct and helpful.",
                "Not quite: nothing was added that the model did not know. Read some answers with care.",
            ),
            Choice(
                "It is what the model would say to a harmless request.",
                "Not quite: everything else in the vector still says what was asked.",
            ),
            Choice(
                "Nothing: only one coordinate at one block is known.",
                "Right. What comes of it has to be observed.",
                True,
            ),
        ),
        "ace-zero-harmful",
    ),
    Lesson(
        "Reading the evidence",
        r"""
One answer is an anecdote. To claim that a method works takes a share of many held-out prompts, and how far to trust
it. If $k$ of $n$ answers are refusals, a 95 % interval for the true share is (Wilson, with $z = 1.96$):

$$\frac{\hat p + \frac{z^2}{2n} \pm z\sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}
\qquad \hat p = k/n$$

Ask also **how it was judged**. The badges here look for phrases of refusal and for broken text; they can't tell
whether an answer is any good. Gibberish is not compliance ([2402.10260](https://arxiv.org/abs/2402.10260)). A model
that refuses everything looks safe until it meets harmless look-alikes
([2308.01263](https://arxiv.org/abs/2308.01263)). And a short answer may turn into a refusal one sentence later.
""",
        "interval",
        "An invented test: of two methods, one leaves 90 % of answers refusals and the other 70 %. How many prompts "
        "does it take to tell?",
        "Method A left 9 of 10 answers refusals, method B 7 of 10. What can you say?",
        (
            Choice(
                "A leaves more refusals than B.",
                "Not quite: with ten prompts the intervals reach from 60 to 98 % and from 40 to 89 %.",
            ),
            Choice("Too little to tell.", "Right: the two intervals overlap widely. Ask for more prompts.", True),
            Choice(
                "They are equally good.",
                "Not quite: that there is no proof of a difference is no proof that there is none.",
            ),
        ),
        "sampled",
    ),
)
