"""The truth in place of a part of the network."""



@torch.no_grad()
def predict_with_truth(model, kind, image, parsing, ignore):
    """Parsing of one image where the ground truth stands in for a part of the network: the heat map (centers), that and
    the correlations with people (people), or the correlations with categories (classes). What is still wrong is the
    rest's fault."""
    config, photo = model.config, Image.fromarray(image)
    out, (padded, size) = outputs(model, prepare(photo, config)), input_size(photo, config)
    _, parsing, ignore = data.resize(image, parsing, ignore, size[::-1], config.recipe)
    below = (0, padded[1] - size[1], 0, padded[0] - size[0])
    parsing, ignore = (F.pad(torch.from_numpy(np.array(x)), below) for x in (parsing, ignore))
    truth = make_targets(parsing, ignore, out['f_ins'].shape[-2:], config)
    if kind == 'classes':
        masks, _ = category_masks(truth, config.num_classes, torch.float32)
        out['f_cate'] = masks.view(1, -1, *out['f_cate'].shape[-2:])
        out['k_cate'] = torch.eye(config.num_classes)
    else:
        cells, heat = truth['cells'][truth['exists']], torch.full((config.grid ** 2,), -9.0)
        heat[cells] = 9.0
        out['heatmap'] = heat.view(1, 1, config.grid, config.grid)
    if kind == 'people':
        out['f_ins'] = truth['persons'][truth['exists']].float()[None]                     # (1, N, h, w)
        out['k_ins'] = torch.zeros(1, len(cells), config.grid ** 2)
        out['k_ins'][0, torch.arange(len(cells)), cells] = 1
    return decode({k: v.cpu() if torch.is_tensor(v) else v for k, v in out.items()}, 0, photo, config)


def benchmark(args):
    model = load_model(args, args.device)

    def save(folder, photo, found):
        write_results(folder, 'photo', 'photo.jpg', photo, found, model.class_names, args.cutouts)

    people = 10 if args.people is None else args.people
    benchmark_inference(model, (args.photos or [PHOTO])[0], args.size, people, save, args.export)
