"""Commands that show what a training batch, a model's answers, or a source holds.

    python -m big_vlp.show batch --config configs/demo.py --step 3 --output batch.png
    python -m big_vlp.show words --model runs/catlip --image some.jpg --output words.png
    python -m big_vlp.show segmentation --model runs/cosmos --image some.jpg --classes sky,sea,boat
    python -m big_vlp.show attention --model runs/cosmos --image some.jpg --text "a boat at sea"
    python -m big_vlp.show retrieval --model runs/clip --input data/coco_val2017 --caption-field txt
    python -m big_vlp.show mistakes --model runs/clip --input data/wds_imagenet1k_test
    python -m big_vlp.show predictions --predictions vqav2.json --input data/vqav2_val --metric vqa

`batch` draws a training batch as the model sees it: every view after augmentation, with the texts
or labels below. Of single images, `words` prints the most probable classes, for CatLIP the synsets
it would expect in a caption, and draws them; `segmentation` draws the class of every pixel,
`attention` what a COSMOS attends to in an image and its caption. Of a whole source, `retrieval`
draws the images that a model finds for texts, and the texts for images, `mistakes` the mistakes in
classifying that it is surest of; `predictions` makes a page of what a model answered, to look
through in a browser.
`python -m big_vlp.show COMMAND --help` tells the arguments of each.
"""
